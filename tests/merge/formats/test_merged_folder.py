"""A merged folder is whole or refused: manifest, config.json, tokenizer and tensors say the same."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from flexo.errors import InputError, ModelFolderError
from merge.formats.anchor_folder import open_anchor
from merge.formats.merged_folder import open_merged
from merge.planning.membership import replan
from merge.planning.merge_plan import execute, plan
from merge.planning.quantize import quantized_plan
from tests.merge.tools import edit

Make = Callable[..., Path]
Change = Callable[[dict[str, Any]], object]
GATE = "model.layers.1.mlp.gate.weight"


@pytest.fixture(scope="module")
def model(make_expert: Make, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """public, math and news; for all tests of this file."""
    folder = tmp_path_factory.mktemp("merged") / "model"
    execute(plan([make_expert("math"), make_expert("news")]), folder)
    return folder


@pytest.fixture
def copied(model: Path, tmp_path: Path) -> Path:
    """The model as a copy that a test may damage."""
    return Path(shutil.copytree(model, tmp_path / "copied"))


def test_what_a_merge_wrote_is_read(model: Path, tiny_anchor: Path) -> None:
    merged, anchor = open_merged(model), open_anchor(tiny_anchor)
    assert merged.domains == ["public", "math", "news"] and merged.architecture == anchor.architecture
    assert merged.anchor["digest"] == anchor.digest and merged.top_k_at_most == 4
    assert merged.scheme is None and merged.converted_from is None and not merged.router_trained
    assert merged.digests is not None and merged.digests.keys() == merged.weights.names
    for name in merged.weights.names:
        assert merged.stored(name).sha256 == merged.weights.stored(name).digest()


@pytest.mark.parametrize(
    ("file", "change", "said"),
    [
        ("manifest.json", lambda m: m.pop("anchor"), "not as flexo-merge writes it (KeyError: \"'anchor'"),
        ("manifest.json", lambda m: m.update(anchor=[]), "not as flexo-merge writes it (TypeError"),
        ("manifest.json", lambda m: m["anchor"].pop("router_digest"), "not as flexo-merge writes it (KeyError"),
        ("manifest.json", lambda m: [m.pop("top_k"), m.pop("top_k_at_most")], "not as flexo-merge writes it (KeyError"),
        ("manifest.json", lambda m: m.update(max_shard_size="large"), "not as flexo-merge writes it (ValueError"),
        ("manifest.json", lambda m: m["experts"].reverse(), "expected the expert 'public' first and each domain once"),
        ("manifest.json", lambda m: m["experts"][2].update(domain="math"), "got ['public', 'math', 'math']"),
        ("manifest.json", lambda m: m["experts"].clear(), "expected the expert 'public' first"),
        ("manifest.json", lambda m: m["experts"].pop(), "lists 2 experts, config.json 3"),
        ("manifest.json", lambda m: m.update(converted_from="I8"), "converted_from is 'I8', expected one of F64, F32"),
        ("manifest.json", lambda m: m.update(public_weight=-1), "public_weight is -1, expected a positive number"),
        ("manifest.json", lambda m: m.update(quantised={"bits": 4, "group_size": 16}), "its experts are quantised"),
        ("manifest.json", lambda m: m["anchor"]["architecture"].update(hidden_size=64), "hidden_size is 32 in config."),
        ("manifest.json", lambda m: m["anchor"]["architecture"].pop("vocab_size"), "json: vocab_size is 'None'"),
        ("manifest.json", lambda m: m["tensors"].pop(GATE), "tensors is not a sha256 in hex for each tensor"),
        ("manifest.json", lambda m: m["tensors"].update({GATE: 5}), "tensors is not a sha256 in hex for each tensor"),
        ("manifest.json", lambda m: m.update(tensors=[GATE]), "tensors is not a sha256 in hex for each tensor"),
        ("manifest.json", lambda m: m.update(left="news"), "left is 'news', expected a list of experts"),
        ("config.json", lambda c: c.update(model_type="olmo2"), "model_type is 'olmo2', expected 'flex_olmo'"),
        ("config.json", lambda c: c.update(num_experts=4), "lists 3 experts, config.json 4"),
        ("config.json", lambda c: c.update(rms_norm_eps=1e-3), "is 0.001 in config.json, 1e-06 in manifest.json"),
        ("tokenizer.json", lambda t: t.update(version="2"), "tokenizer.json is not the one of its manifest.json"),
        ("model.safetensors", lambda t: t.pop(GATE), "not a FlexOlmo model of the 3 experts in manifest.json. Missing"),
        ("model.safetensors", lambda t: t.update(extra=t[GATE].clone()), "Not expected: extra"),
        ("model.safetensors", lambda t: t.update({GATE: t[GATE][:2].contiguous()}), f"{GATE} is (2, 32)"),
    ],
)  # fmt: skip
def test_whatever_does_not_fit_is_refused_by_every_reader(copied: Path, file: str, change: Change, said: str) -> None:
    edit(copied / file, change)
    with pytest.raises(ModelFolderError, match=re.escape(said)):
        open_merged(copied)
    with pytest.raises(InputError):  # a plan takes a quantised folder, and this is none in any case
        replan(copied, drop=["math"])


@pytest.mark.parametrize("file", ["manifest.json", "config.json", "tokenizer.json", "model.safetensors"])
def test_a_missing_file_is_refused(copied: Path, file: str) -> None:
    (copied / file).unlink()
    with pytest.raises(ModelFolderError):
        open_merged(copied)


def test_quantised_experts_are_read_where_they_will_do(model: Path, tmp_path: Path) -> None:
    execute(quantized_plan(model, 4, 8), tmp_path / "packed")
    with pytest.raises(ModelFolderError, match=r"its experts are quantised\. Take the model that it was made from"):
        open_merged(tmp_path / "packed")
    scheme = open_merged(tmp_path / "packed", quantised=True).scheme
    assert scheme is not None and (scheme.bits, scheme.group_size) == (4, 8)
