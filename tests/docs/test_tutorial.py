"""The tutorial runs from an empty kernel to its picture, and shows what its text promises."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]
NOTEBOOK = ROOT / "docs/tutorial.ipynb"


def outputs(notebook: Any) -> list[Any]:
    """What the code cells have shown, one after the other."""
    return [out for cell in notebook["cells"] if cell["cell_type"] == "code" for out in cell["outputs"]]


def check(shown: list[Any]) -> None:
    """Three experts, a merged model, a leave to the same bytes, one picture, and no error."""
    printed = "".join("".join(out.get("text", "")) for out in shown)
    for domain in ("math", "code", "educational"):
        assert f"experts/{domain}.pt" in printed
    assert "merged, top-4 of 4" in printed and "model.safetensors: the same bytes" in printed
    assert sum("image/png" in out.get("data", {}) for out in shown) == 1
    assert not any(out["output_type"] == "error" for out in shown)


def test_the_committed_outputs_are_those_of_a_whole_run() -> None:
    check(outputs(json.loads(NOTEBOOK.read_text(encoding="utf-8"))))


@pytest.mark.slow
def test_three_owners_make_one_model_and_one_leaves(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Four minutes on two cores; in a process of its own, whose commands are those of this environment."""
    nbformat = pytest.importorskip("nbformat", reason="the extra notebook is not installed: make slow installs it")
    nbclient = pytest.importorskip("nbclient", reason="the extra notebook is not installed: make slow installs it")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")])))
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    nbclient.NotebookClient(notebook, timeout=900, resources={"metadata": {"path": str(tmp_path)}}).execute()
    check(outputs(notebook))
