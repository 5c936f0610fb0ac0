"""The rooms import one way only, every config composes, and nothing is named after nothing."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from flexo.config_dir import config_dir

ROOT = Path(__file__).resolve().parents[1]
FLOOR = {"flexo.errors", "flexo.atomic_files", "flexo.console", "flexo.config_dir", "flexo.make_once"}
ROOMS = ("flexo", "flexmix", "merge", "federation", "trainers", "inference", "evals", "hydra_plugins")
ALLOWED = {
    "flexo": {"flexo"},
    "merge": {"merge", "flexo"},
    "flexmix": {"flexmix", "flexo"},
    "federation": {"federation", "merge", "flexo"},
    "trainers": {"trainers", "flexmix", "merge", "flexo"},
    "inference": {"inference", "merge", "flexo"},
    "evals": {"evals", "trainers", "inference", "flexmix", "merge", "flexo"},
    "hydra_plugins": {"trainers"},
}
SCRIPTS = ("train_anchor", "train_expert", "train_router", "run_study")
CONFIGS = sorted(path.relative_to(config_dir()) for path in config_dir().rglob("*.yaml"))
NEEDED = {"train_anchor": ["data.path=text"], "train_expert": ["+domain=math"], "train_router": [], "run_study": []}


def imports(path: Path) -> set[str]:
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            found.add(node.module or "")
    return found


@pytest.mark.parametrize("room", ROOMS)
def test_imports_run_one_way(room: str) -> None:
    files = list((ROOT / room).rglob("*.py"))
    assert files
    for path in files:
        for module in imports(path):
            if module.split(".")[0] in {*ROOMS, "tests", *SCRIPTS}:
                allowed = any(module == name or module.startswith(name + ".") for name in ALLOWED[room])
                assert allowed, f"{path.relative_to(ROOT)} imports {module}: {room} may import {sorted(ALLOWED[room])}"


def test_the_floor_needs_typer_alone() -> None:
    code = f"import sys, {', '.join(sorted(FLOOR))}; print({{'torch', 'numpy', 'yaml'}} & sys.modules.keys())"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "set()\n"


def test_no_benchmark_hides_a_room() -> None:
    assert not {path.stem for path in (ROOT / "benchmarks").glob("*.py")} & set(
        ROOMS
    )  # its folder is first in sys.path


def test_no_file_is_named_after_nothing_and_none_is_endless() -> None:
    for room in ROOMS:
        for path in (ROOT / room).rglob("*.py"):
            assert path.stem.rstrip("s") not in {"util", "helper", "common", "misc"}, path
            lines = path.read_text().splitlines()
            assert len(lines) <= 320, f"{path.relative_to(ROOT)}: {len(lines)} lines. Does it still have one subject?"
            assert lines[0].startswith('"""'), f"{path.relative_to(ROOT)} does not start by saying what it is"


def test_there_are_configs() -> None:
    assert {str(path) for path in CONFIGS} >= {"train_anchor.yaml", "train_expert.yaml", "domain/math.yaml"}


@pytest.mark.parametrize("path", CONFIGS, ids=str)
def test_every_config_composes(path: Path) -> None:
    """Each YAML is loaded by the scripts that it belongs to, with all interpolations resolved."""
    group, name = str(path.parent), path.stem
    used = 0
    with initialize_config_dir(str(config_dir()), version_base="1.3"):
        for script in SCRIPTS:
            script_cfg = config_dir() / f"{script}.yaml"
            overrides = list(NEEDED[script])
            if group == "domain":
                overrides = [f"+domain={name}"]
                if script != "train_expert":
                    continue
                if name == "local":
                    overrides += ["domain.name=mine", "domain.train=train.jsonl"]
            elif group == "flexmix":
                if script != "train_expert":
                    continue
                overrides.append(f"+flexmix@shown={name}")
            elif group == "recipes":
                if script != "run_study":
                    continue
                overrides.append(f"+recipes@shown={name}")
            elif group == "hydra/output":
                assert f"override hydra/output: {name}" in script_cfg.read_text()
            elif group == "hydra/launcher":
                overrides.append(f"hydra/launcher={name}")
            elif group != ".":
                if f"- {group}:" not in script_cfg.read_text():
                    continue
                if name in ("anchor", "expert", "router") and not script.endswith(name):
                    continue
                if group == "experiment" and script == "train_anchor":
                    continue
                overrides.append(f"{group}={name}")
            elif name != script:
                continue
            OmegaConf.to_container(compose(script, overrides), resolve=True, throw_on_missing=True)
            used += 1
    assert used, f"{path} belongs to no script"


def test_all_seven_domains_and_local_are_there() -> None:
    seven = {"news", "creative", "code", "academic", "educational", "math", "reddit"}
    assert {path.stem for path in CONFIGS if path.parent.name == "domain"} == seven | {"local"}
