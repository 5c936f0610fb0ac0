"""A model with other router rows: nothing else changes, and what was damaged is not passed on."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from flexo.errors import ModelFolderError
from merge.formats.architecture import merged_router
from merge.formats.merged_folder import open_merged
from merge.planning.merge_plan import execute, plan
from merge.planning.router_rows import write_rows
from tests.merge.tools import listing

ROWS = {n: torch.full((3, 32), float(n + 1)) for n in (0, 2)}


@pytest.fixture
def model(make_expert: Callable[..., Path], tmp_path: Path) -> Path:
    execute(plan([make_expert("math"), make_expert("news")]), tmp_path / "model")
    return tmp_path / "model"


def test_rows_change_and_all_else_stays(model: Path, tmp_path: Path) -> None:
    (model / "LICENSE").write_text("as it was")
    (model / ".cache").write_text("not of the model")
    merged = open_merged(model)
    write_rows(merged, ROWS, tmp_path / "new", merged.manifest | {"how": "rows set by hand"})
    assert listing(tmp_path / "new") == listing(model) - {".cache"}
    for name in listing(tmp_path / "new") - {"manifest.json", "README.md", "model.safetensors"}:
        assert (tmp_path / "new" / name).read_bytes() == (model / name).read_bytes(), name
    before, after = (load_file(folder / "model.safetensors") for folder in (model, tmp_path / "new"))
    changed = {merged_router(n) for n in ROWS}
    assert {name for name in before if not torch.equal(before[name], after[name])} == changed
    assert all(torch.equal(after[merged_router(n)], rows) for n, rows in ROWS.items())
    again = open_merged(tmp_path / "new")
    assert again.manifest["how"] == "rows set by hand" and again.digests is not None
    assert {name for name in before if again.digests[name] != (merged.digests or {})[name]} == changed
    assert all(again.weights.stored(name).digest() == digest for name, digest in again.digests.items())


def test_a_damaged_tensor_is_not_given_a_new_digest(model: Path, tmp_path: Path) -> None:
    data = bytearray((model / "model.safetensors").read_bytes())
    data[-1] ^= 1  # a weight of the last layer
    (model / "model.safetensors").write_bytes(data)
    merged = open_merged(model)
    with pytest.raises(ModelFolderError, match="does not match the sha256"):
        write_rows(merged, ROWS, tmp_path / "new", merged.manifest)
    assert listing(tmp_path) == {"model"}


def test_without_digests_none_are_stated_afterwards(model: Path, tmp_path: Path) -> None:
    manifest = json.loads((model / "manifest.json").read_text()) | {"tensors": None}
    (model / "manifest.json").write_text(json.dumps(manifest))
    merged = open_merged(model)
    write_rows(merged, ROWS, tmp_path / "new", merged.manifest)
    assert open_merged(tmp_path / "new").digests is None
