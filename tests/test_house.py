"""The rooms import one way only and in no circle, folders and functions stay small, and every config composes."""

from __future__ import annotations

import ast
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from flexo.commands.table import COMMANDS
from flexo.config_dir import config_dir
from tests.source_tree import (
    NO_NAMES,
    ROOT,
    circles,
    folder_imports,
    functions,
    imported,
    is_command,
    lines_of_code,
    module_imports,
    parameters,
    sources,
)

ALLOWED = {
    "flexo": {"flexo"},
    "merge": {"merge", "flexo"},
    "flexmix": {"flexmix", "flexo"},
    "federation": {"federation", "merge", "flexo"},
    "trainers": {"trainers", "flexmix", "merge", "flexo"},
    "inference": {"inference", "merge", "flexo"},
    "serving": {"serving", "inference", "merge", "flexo"},
    "evals": {"evals", "trainers", "inference", "federation", "flexmix", "merge", "flexo"},
    "hydra_plugins": {"trainers"},
}
ROOMS = [room for room in ALLOWED if (ROOT / room).is_dir()]
FACE = ROOT / "flexo/__init__.pyi"  # the one file of `flexo` that names rooms, of which nothing is imported
SCRIPTS = [command.script for command in COMMANDS if command.script]
CONFIGS = sorted(path.relative_to(config_dir()) for path in config_dir().rglob("*.yaml"))
NEEDED = {"train_anchor": ["data.path=text"], "train_expert": ["+domain=math"], "train_router": [], "run_study": []}


def test_every_room_is_known() -> None:
    assert {path.parent.name for path in ROOT.glob("*/__init__.py")} | {"hydra_plugins"} == set(ROOMS)
    assert {path.stem for path in ROOT.glob("*.py")} == {*SCRIPTS, "hatch_build"}


@pytest.mark.parametrize("room", ROOMS)
def test_imports_run_one_way(room: str) -> None:
    files = [path for kind in ("*.py", "*.pyi") for path in (ROOT / room).rglob(kind) if path != FACE]
    assert files
    for path in files:
        for module in imported(path):
            top = module.partition(".")[0]
            if top in {*ALLOWED, "tests", *SCRIPTS}:
                assert top in ALLOWED[room], f"{path.relative_to(ROOT)} imports {module}: {room} may not"
                assert module != "flexo", f"{path.relative_to(ROOT)} imports the face, and with it all rooms"


def test_the_face_names_rooms_and_the_floor_alone() -> None:
    assert {module.partition(".")[0] for module in imported(FACE)} <= set(ROOMS) - {"hydra_plugins"}


def test_nothing_imports_in_a_circle() -> None:
    """Neither files nor folders, lazy imports counted. The files that lie in a room itself count one by one."""
    assert circles({"a": {"b"}, "b": {"c"}, "c": {"b", "d"}, "d": set()}) == {frozenset({"b", "c"})}
    assert circles(module_imports()) == set()
    assert circles(folder_imports()) == set()


def test_no_folder_is_crowded() -> None:
    for folder in {path.parent for path in sources().values()} - {ROOT}:
        names = sorted({path.name for path in folder.iterdir()} - NO_NAMES)
        assert len(names) <= 13, f"{folder.relative_to(ROOT)} holds {len(names)}: {', '.join(names)}"


def test_functions_can_be_seen_at_once() -> None:
    assert not {name for name, node, lines in functions() if lines_of_code(node, lines) > 60}


def test_functions_take_few_parameters() -> None:
    assert not {name for name, node, _ in functions() if len(parameters(node)) > 7 and not is_command(node)}


def test_functions_are_counted_as_they_are_written() -> None:
    (node,) = ast.parse(
        'def f(self, a, *b, c: "Annotated[int, typer.Option()]" = 1, **d):\n    """Says."""\n    # why\n\n    x = (\n'
        "        1\n    )\n    return x\n"
    ).body
    assert isinstance(node, ast.FunctionDef)
    text = ["def f(...):", '    """Says."""', "    # why", "", "    x = (", "        1", "    )", "    return x"]
    assert lines_of_code(node, text) == 4 and is_command(node)
    assert [part.arg for part in parameters(node)] == ["a", "c", "b", "d"]


def test_commands_are_called_after_themselves() -> None:
    """`flexo-merge` is `commands/flexo_merge.py` of a room, with a `main`; and nothing else is called so."""
    scripts = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["scripts"]
    files = {path.stem.replace("_", "-"): path for path in ROOT.glob("*/commands/flexo*.py")}
    assert files.keys() == scripts.keys()
    for path in files.values():
        assert "main" in {node.name for node in ast.parse(path.read_text()).body if isinstance(node, ast.FunctionDef)}


def test_the_floor_needs_typer_alone() -> None:
    floor = [name for name in sources() if name.partition(".")[0] == "flexo"]
    code = f"import sys, {', '.join(sorted(floor))}; print({{'torch', 'numpy', 'yaml'}} & sys.modules.keys())"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "set()\n"


def test_no_benchmark_hides_a_room() -> None:
    assert not {path.stem for path in (ROOT / "benchmarks").glob("*.py")} & set(
        ROOMS
    )  # its folder is first in sys.path


def test_no_file_is_named_after_nothing_and_none_is_endless() -> None:
    for path in sources().values():
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
