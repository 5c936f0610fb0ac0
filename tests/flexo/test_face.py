"""`import flexo`: which names it gives, that each is what its room has, and that nothing comes before its time."""

from __future__ import annotations

import ast
import importlib
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

import flexo
from flexo.lazy_names import homes_of

ROOT = Path(__file__).resolve().parents[2]
STUB = (ROOT / "flexo/__init__.pyi").read_text()
SURFACE = [
    "Anchor", "AnchorOptions", "Attribution", "Audit", "Check", "DataOptions", "Domain", "Embedding",
    "ExpertFile", "ExpertFileError", "Extras", "Generated", "InputError", "Likeness", "Limits", "LossOptions",
    "MergeOptions", "Merged", "MixtureOptions", "ModelFolderError", "OptimizerOptions", "OwnerOptions",
    "PairOptions", "PrepareOptions", "RankBudget", "Reading", "Results", "RouterOptions", "Run", "Sampling", "Scoring",
    "Source", "Statistics", "Study", "StudyOptions", "TrainerOptions", "WholeOptions", "attribute", "audit",
    "btx", "check", "check_prepared", "compress", "cosines", "divergence", "embed", "embed_documents", "evaluate",
    "expected_gain", "expert_names", "fit_router", "generate", "inspect", "load_model", "make_key",
    "make_tasks", "merge", "mix_sets", "open_anchor", "open_expert", "open_merged", "opt_out", "prepare",
    "proxies", "quantize", "read_documents", "read_embedding", "read_results", "report", "sample",
    "select_experts", "sign", "soup", "study", "train_anchor", "train_expert", "train_router", "train_whole",
    "verify",
]  # fmt: skip


def said(code: str) -> str:
    return subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True).stdout


def test_the_public_surface_changes_on_purpose_only() -> None:
    assert flexo.__all__ == SURFACE
    assert set(SURFACE) < set(dir(flexo)) and "__version__" in dir(flexo)


def test_the_stub_is_read_as_python_reads_it() -> None:
    homes: dict[str, tuple[str, str]] = {}
    for node in ast.parse(STUB).body:
        if isinstance(node, ast.ImportFrom):
            homes |= {alias.asname or alias.name: (node.module or "", alias.name) for alias in node.names}
    for node in ast.parse(STUB).body:
        if isinstance(node, ast.Assign) and isinstance(node.value, ast.Name) and isinstance(node.targets[0], ast.Name):
            homes[node.targets[0].id] = homes.pop(node.value.id)
    assert homes_of(STUB) == homes and sorted(homes) == SURFACE


@pytest.mark.parametrize("name", SURFACE)
def test_each_name_is_what_its_room_has(name: str) -> None:
    module, there = homes_of(STUB)[name]
    assert getattr(flexo, name) is getattr(importlib.import_module(module), there)
    assert (getattr(flexo, name).__doc__ or "").strip(), f"{name} is public and says nothing about itself"


def test_importing_costs_next_to_nothing() -> None:
    """No numpy, no PyTorch, no Typer, no room: some modules of the standard library, and our own two."""
    loaded = said(
        "import sys; before = set(sys.modules); import flexo; dir(flexo); print(*(set(sys.modules) - before))"
    ).split()
    assert {"flexo", "flexo.lazy_names"} == {name for name in loaded if name.partition(".")[0] == "flexo"}
    rooms = {path.parent.name for path in ROOT.glob("*/__init__.py")} - {"flexo"}
    assert not {name.partition(".")[0] for name in loaded} & {*rooms, "numpy", "torch", "typer", "yaml", "pathlib"}


def test_a_name_imports_its_own_room_alone() -> None:
    loaded = said("import sys, flexo; flexo.open_expert; print(*sys.modules)").split()
    assert "merge.formats.expert_file" in loaded and not {"torch", "inference", "trainers", "evals"} & set(loaded)


def test_what_is_not_there_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="module 'flexo' has no attribute 'lode_model'"):
        _ = flexo.lode_model
    with pytest.raises(ImportError):
        from flexo import lode_model  # noqa: F401


def test_a_room_of_the_same_name_does_not_take_its_place(monkeypatch: pytest.MonkeyPatch) -> None:
    """As `import flexo.merge.formats` would in a wheel, where Python then sets the attribute `merge`."""
    model = flexo.load_model
    flexo.load_model = ModuleType("flexo.load_model")
    assert flexo.load_model is model
    monkeypatch.setattr(flexo, "load_model", len)
    assert flexo.load_model is len


def test_the_version_is_that_of_the_distribution() -> None:
    assert f'\nversion = "{flexo.__version__}"\n' in (ROOT / "pyproject.toml").read_text()


@pytest.mark.slow  # mypy reads PyTorch and transformers for it
def test_type_checkers_see_what_is_there(tmp_path: Path) -> None:
    script = tmp_path / "uses.py"
    script.write_text("import flexo\n\nreveal_type(flexo.load_model)\nreveal_type(flexo.sample)\nflexo.lode_model\n")
    command = [sys.executable, "-m", "mypy", "--config-file", ROOT / "pyproject.toml", script]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    load, sample, missing, _ = done.stdout.splitlines()
    assert "folder: pathlib.Path" in load and "transformers" in load and "PreTrainedTokenizerBase" in load
    assert "output: pathlib.Path" in sample and "-> dict[" in sample.lower()
    assert 'Module has no attribute "lode_model"' in missing
