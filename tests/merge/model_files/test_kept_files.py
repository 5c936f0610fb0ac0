"""What belongs to a model goes along when it is copied, and nothing else."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

from merge.formats.anchor_folder import anchor_files
from merge.model_files.kept_files import copy_kept, kept_files, left_behind
from tests.merge.tools import edit, listing

MODEL = {"config.json", "generation_config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"}


def test_what_a_trainer_leaves_stays_behind(tiny_anchor: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(tiny_anchor, tmp_path / "given")
    (folder / "LICENSE").write_text("Apache-2.0")
    trainers = ["README.md", "optimizer.pt", "trainer_state.json", "training_args.bin", "pytorch_model.bin"]
    for name in [*trainers, ".hidden", "flexo/stray", "second.safetensors"]:
        (folder / name).write_text("of a run")
    (folder / "checkpoint-5").mkdir()
    assert {path.name for path in kept_files(folder)} == MODEL | {"LICENSE"}
    assert left_behind(folder) == sorted([*trainers, "checkpoint-5", "flexo", "second.safetensors"])
    (tmp_path / "new").mkdir()
    assert copy_kept(folder, tmp_path / "new") == {}
    assert listing(tmp_path / "new") == MODEL | {"LICENSE"}
    assert all((tmp_path / "new" / name).read_bytes() == (folder / name).read_bytes() for name in MODEL)
    shared = {"flexo/anchor.json", "flexo/public_router.safetensors"}
    assert anchor_files(folder).keys() == MODEL | {"LICENSE", "README.md"} | shared


def test_settings_that_say_nothing_about_the_model_are_left_out(tiny_anchor: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(tiny_anchor, tmp_path / "given")
    before = json.loads((folder / "config.json").read_text())
    edit(folder / "config.json", lambda c: c.update(_name_or_path="/home/me", quantization_config={"bits": 4}))
    edit(folder / "tokenizer_config.json", lambda c: c.update(name_or_path="/home/me"))
    (tmp_path / "new").mkdir()
    assert copy_kept(folder, tmp_path / "new", but={"model.safetensors"}) == {
        "config.json": ["_name_or_path", "quantization_config"], "tokenizer_config.json": ["name_or_path"],
    }  # fmt: skip
    assert json.loads((tmp_path / "new/config.json").read_text()) == before
    assert listing(tmp_path / "new") == MODEL - {"model.safetensors"}
    assert "/home/me" not in (tmp_path / "new/tokenizer_config.json").read_text()
