"""An anchor saved again is the same anchor; one of another function is another, and a federation can move to it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from safetensors import safe_open
from safetensors.numpy import save_file

from federation.coordinator.anchors import promote, publish_anchor
from federation.coordinator.choose import choose
from federation.coordinator.refresh import refresh
from federation.owner.submit import submit
from federation.reader.fetch import anchor_entry, fetch_anchor
from flexo.errors import InputError
from merge.formats.anchor_changes import compare_anchors
from merge.formats.anchor_folder import open_anchor
from tests.conftest import MakeAnchor, MakeExpert
from tests.federation.conftest import World


def changed(path: Path, **settings: Any) -> None:
    """Changes settings of a JSON file."""
    path.write_text(json.dumps(json.loads(path.read_text()) | settings))


def resharded(folder: Path) -> None:
    """The same weights in two files."""
    with safe_open(folder / "model.safetensors", "np") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    names = sorted(tensors)
    files = {"model-00001-of-00002.safetensors": names[:9], "model-00002-of-00002.safetensors": names[9:]}
    for file_name, part in files.items():
        save_file({name: tensors[name] for name in part}, folder / file_name, {"format": "pt"})
    weight_map = {name: file_name for file_name, part in files.items() for name in part}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    (folder / "model.safetensors").unlink()


@pytest.fixture
def other(tiny_anchor: Path, tmp_path: Path) -> Path:
    shutil.copytree(tiny_anchor, tmp_path / "other")
    return tmp_path / "other"


def test_what_is_harmless_is_told_apart(tiny_anchor: Path, other: Path) -> None:
    def compared() -> tuple[list[str], list[str]]:
        found = compare_anchors(open_anchor(tiny_anchor), open_anchor(other))
        return found.harmless, found.grave

    assert compared() == ([], [])
    resharded(other)
    assert compared() == (["the same weights, saved in other files"], [])
    changed(other / "tokenizer_config.json", chat_template="{{ messages }}")
    changed(other / "generation_config.json", temperature=0.5)
    (other / "README.md").write_text("An anchor.")
    tokenizer = json.loads((other / "tokenizer.json").read_text())
    (other / "tokenizer.json").write_text(json.dumps(tokenizer))
    assert compared()[0][1:] == [
        "tokenizer.json, written anew with the same content", "README.md is new", "generation_config.json",
        "tokenizer_config.json: chat_template",
    ]  # fmt: skip
    assert compared()[1] == []
    changed(other / "tokenizer_config.json", add_bos_token=True)
    changed(other / "config.json", rope_parameters={"rope_type": "default", "rope_theta": 1.0})
    tokenizer["model"]["vocab"]["zz"] = 5
    (other / "tokenizer.json").write_text(json.dumps(tokenizer))
    assert compared()[1] == [
        "the architecture", "tokenizer.json", "tokenizer_config.json: add_bos_token",
    ]  # fmt: skip


def test_a_configuration_written_by_another_version_is_the_same(tiny_anchor: Path, other: Path) -> None:
    config = json.loads((other / "config.json").read_text())
    rope = config.pop("rope_parameters")
    config |= {"rope_theta": rope["rope_theta"], "rope_scaling": None, "torch_dtype": config.pop("dtype")}
    (other / "config.json").write_text(json.dumps(config))
    found = compare_anchors(open_anchor(tiny_anchor), open_anchor(other))
    assert found.grave == [] and found.harmless == [
        "config.json: dtype, rope_parameters, rope_scaling, rope_theta, torch_dtype"
    ]
    changed(other / "config.json", eos_token_id=[0, 5])
    assert compare_anchors(open_anchor(tiny_anchor), open_anchor(other)).grave == ["config.json: eos_token_id"]


def test_what_is_no_part_of_an_anchor_is_not_published(world: World, other: Path) -> None:
    for name in ("optimizer.pt", "flexo/notes.txt", "second.safetensors"):
        (other / name).write_text("private")
    changed(other / "generation_config.json", temperature=0.5)
    assert publish_anchor(world.coordinator, other).harmless == ["generation_config.json"]
    published = {path.name.partition(".")[2] for path in world.store.joinpath("targets").rglob("*") if path.is_file()}
    assert "generation_config.json" in published
    assert published.isdisjoint({"optimizer.pt", "notes.txt", "second.safetensors"})


def test_an_anchor_saved_again_keeps_its_experts(world: World, other: Path) -> None:
    resharded(other)
    changed(other / "generation_config.json", temperature=0.5)
    (other / "tokenizer.json").write_text(json.dumps(json.loads((other / "tokenizer.json").read_text())))
    files = {path.name for path in world.store.joinpath("targets").rglob("*")}
    changes = publish_anchor(world.coordinator, other)
    assert len(changes.harmless) == 3
    added = {path.name for path in world.store.joinpath("targets").rglob("*")} - files
    assert {name.partition(".")[2] for name in added if "." in name} == {"generation_config.json"}, (
        "the rest is there already"
    )
    chosen, _ = choose(world.coordinator)
    assert [owner.domain for owner, _ in chosen.experts] == ["code", "math"]
    fetched = world.folder / "fetched"
    fetch_anchor(world.home("reader"), world.seen().state, fetched, anchor_entry(world.seen().state))
    assert json.loads((fetched / "generation_config.json").read_text())["temperature"] == 0.5
    assert open_anchor(fetched).tokenizer_digest == open_anchor(world.anchor).tokenizer_digest
    assert publish_anchor(world.coordinator, other).same_function


def test_a_federation_moves_to_a_new_anchor(
    world: World, make_anchor: MakeAnchor, make_expert: MakeExpert, tmp_path: Path
) -> None:
    new = make_anchor(seed=5)
    with pytest.raises(
        InputError, match=r"not the function of the anchor in force; different are the weights, the pub"
    ):
        publish_anchor(world.coordinator, new)
    retrained = make_expert("math", anchor=new, path=tmp_path / "math-new.pt")
    with pytest.raises(InputError, match=r"it was trained against the anchor [0-9a-f]{12}, this federation has"):
        submit(world.home("math"), retrained, [world.key("math")])
    publish_anchor(world.coordinator, new, as_next=True)
    submit(world.home("math"), retrained, [world.key("math")])
    refresh(world.coordinator)
    old, following = (anchor_entry(world.seen().state, which)["digest"] for which in (False, True))
    assert set(world.seen().owners[1].in_force) == {old, following}, "both are in force meanwhile"
    assert [owner.domain for owner, _ in choose(world.coordinator)[0].experts] == ["code", "math"]
    assert [owner.domain for owner, _ in choose(world.coordinator, True)[0].experts] == ["math"]
    world.submit("math", seed=8)
    assert set(world.seen().owners[1].in_force) == {old, following}, "the other one stays"
    assert promote(world.coordinator) == following
    chosen, report = choose(world.coordinator)
    assert [owner.domain for owner, _ in chosen.experts] == ["math"]
    assert report == ["code: left out: its expert is for another anchor"]
    with pytest.raises(InputError, match=r"there is no next anchor"):
        promote(world.coordinator)
