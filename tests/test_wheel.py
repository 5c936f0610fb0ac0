"""The wheel, installed into an environment of its own, works from an empty folder."""

from __future__ import annotations

import json
import os
import site
import subprocess
import sys
import tomllib
import venv
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.flexmix.text import write_jsonl

ROOT = Path(__file__).resolve().parents[1]
COMMANDS = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["scripts"]
MakeExpert = Callable[..., Path]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built with the hatchling that is installed, for the test needs no network."""
    folder = tmp_path_factory.mktemp("dist")
    subprocess.run(
        [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", folder, ROOT],
        check=True,
        capture_output=True,
    )
    (built,) = folder.glob("flexo-*.whl")
    return built


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The `bin` of a new environment that holds the wheel alone, and finds what it depends on in ours."""
    folder = tmp_path_factory.mktemp("venv")
    venv.create(folder, with_pip=False)
    subprocess.run(
        [sys.executable, "-m", "pip", "--python", folder / "bin/python", "install", "--no-deps", "--quiet", wheel],
        check=True,
    )
    (packages,) = folder.glob("lib/python*/site-packages")
    (packages / "dependencies.pth").write_text("\n".join(site.getsitepackages()) + "\n")
    return folder / "bin"


@pytest.fixture
def call(installed: Path, tmp_path: Path) -> Callable[..., subprocess.CompletedProcess[str]]:
    """Runs a program of the new environment in an empty folder, without our paths."""
    folder = tmp_path / "empty"
    folder.mkdir()
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}

    def run(program: str, *arguments: object) -> subprocess.CompletedProcess[str]:
        command = [installed / program, *map(str, arguments)]
        return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)

    return run


def test_the_wheel_holds_rooms_scripts_and_configs_and_nothing_else(wheel: Path) -> None:
    names = zipfile.ZipFile(wheel).namelist()
    roots = {name.split("/")[0] for name in names}
    rooms = {"flexo", "flexmix", "trainers", "merge", "inference", "evals"}
    assert roots - {root for root in roots if root.endswith(".dist-info")} == rooms | {
        "hydra_plugins", "run_study.py", *(path.name for path in ROOT.glob("train_*.py"))
    }  # fmt: skip
    assert [name for name in names if name.startswith("hydra_plugins/")] == ["hydra_plugins/flexo_launchers.py"]
    configs = {str(path.relative_to(ROOT / "configs")) for path in (ROOT / "configs").rglob("*.yaml")}
    assert {name.removeprefix("flexo/_configs/") for name in names if "/_configs/" in name} == configs
    assert {f"{room}/py.typed" for room in rooms} <= set(names)
    assert any(name.endswith("/LICENSE") for name in names)


def test_nothing_is_found_in_the_checkout(call: Callable[..., subprocess.CompletedProcess[str]]) -> None:
    said = call(
        "python",
        "-c",
        "import flexo.config_dir as p, hydra_plugins.flexo_launchers as h, train_expert\n"
        "print(p.config_dir(), h.__file__)",
    )
    assert said.returncode == 0 and str(ROOT) not in said.stdout


@pytest.mark.parametrize("command", sorted(COMMANDS))
def test_every_command_explains_itself(command: str, call: Callable[..., subprocess.CompletedProcess[str]]) -> None:
    said = call(command, "--help")
    assert said.returncode == 0, said.stderr
    assert "Usage: " in said.stdout and command in said.stdout


@pytest.mark.parametrize("script", ["train_anchor", "train_expert"])
def test_training_scripts_are_modules(script: str, call: Callable[..., subprocess.CompletedProcess[str]]) -> None:
    said = call("python", "-m", script, "--cfg", "job")
    windows = 2 if script == "train_expert" else 8
    assert said.returncode == 0 and f"batch_size: {windows}" in said.stdout
    wrong = call("python", "-m", script, "debug=fats")
    assert (wrong.returncode, wrong.stderr) == (
        1, "error: debug=fats: there is no such debug. Did you mean 'fast'? There are: fast.\n"
    )  # fmt: skip


def test_the_coordinators_way_from_an_empty_folder(
    call: Callable[..., subprocess.CompletedProcess[str]], tiny_anchor: Path, make_expert: MakeExpert, tmp_path: Path
) -> None:
    """Merge, look, generate and measure with the installed commands."""
    experts = [make_expert("math"), make_expert("news", seed=1)]
    for domain in ("public", "math", "news"):
        write_jsonl(tmp_path / f"data/{domain}/test.jsonl", ["The cat sat. " * 20, "A dog ran off. " * 20])
    merged = call("flexo-merge", *experts, "-o", "model", "--anchor", tiny_anchor)
    assert merged.returncode == 0, merged.stderr
    shown = call("flexo-inspect", "model")
    assert shown.returncode == 0 and "math" in shown.stdout and "news" in shown.stdout
    generated = call("flexo-generate", "model", "The cat", "--max-new-tokens", 4)
    assert generated.returncode == 0 and generated.stdout.startswith("The cat")
    measured = call("flexo-eval", "model", "--data", tmp_path / "data", "--json", "matrix.json")
    assert measured.returncode == 0, measured.stderr
    matrix = json.loads((tmp_path / "empty/matrix.json").read_text())
    assert [model["kind"] for model in matrix["models"]] == ["anchor", "pair", "pair", "merged"]
