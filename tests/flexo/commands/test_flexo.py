"""`flexo`: all commands under one name, who uses which, and what it costs to ask."""

from __future__ import annotations

import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import flexo.commands
from flexo.commands.flexo import main, overview
from flexo.commands.table import COMMANDS, ROLES, command_called
from tests.merge.tools import call

ROOT = Path(__file__).resolve().parents[3]


def run(*command: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, *map(str, command)], cwd=ROOT, capture_output=True, text=True)


def test_the_console_scripts_are_those_of_the_table() -> None:
    ours = {command.program: f"flexo.commands:{command.function}" for command in COMMANDS if not command.script}
    scripts = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["scripts"]
    assert scripts == ours | {"flexo": "flexo.commands.flexo:main"}


@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: command.name)
def test_every_command_of_the_table_is_there(command: flexo.commands.Command) -> None:
    if command.script:
        assert command.usage == f"python {command.script}.py" and (ROOT / f"{command.script}.py").is_file()
    else:
        found = getattr(flexo.commands, command.function)
        assert found.__module__ == f"{command.room}.commands.{command.function}" and found.__name__ == "main"
        assert command.usage == f"flexo {command.name}"
    assert command_called(command.program) is command


def test_what_is_no_command_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no attribute 'flexo_train_expert'"):
        _ = flexo.commands.flexo_train_expert


def test_alone_it_says_who_does_what() -> None:
    said = run("-m", "flexo.commands.flexo")
    assert (said.returncode, said.stderr) == (0, "") and said.stdout == overview() + "\n"
    parts = said.stdout.split("\n\n")
    for role, does in ROLES.items():
        (part,) = (part for part in parts if part.startswith(f"{does}:\n"))
        of_role = [command for command in COMMANDS if command.role == role]
        assert [line.split(maxsplit=1) for line in part.splitlines()[1:]] == [[c.name, c.does] for c in of_role]
    assert {command.role for command in COMMANDS} == set(ROLES)
    assert max(map(len, said.stdout.splitlines())) <= 95


def test_asking_imports_no_room_and_nothing_large() -> None:
    code = "import sys; from flexo.commands.flexo import main; sys.argv = ['flexo']; main(); print(*sys.modules)"
    loaded = {name.partition(".")[0] for name in run("-c", code).stdout.splitlines()[-1].split()}
    assert not loaded & {"numpy", "torch", "typer", "rich", "merge", "flexmix", "trainers", "inference", "evals"}


@pytest.mark.parametrize(
    ("typed", "meant"),
    [("mrege", "merge"), ("flexo-merge", "merge"), ("train_expert", "train-expert"), ("opt-out", "optout")],
)
def test_near_misses_are_suggested(typed: str, meant: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert call(main, typed, "--help") == 2
    out, err = capsys.readouterr()
    assert out == "" and err.startswith(f"error: {typed!r}: there is no such command. Did you mean {meant!r}? ")


def test_what_is_like_nothing_has_no_suggestion(capsys: pytest.CaptureFixture[str]) -> None:
    assert call(main, "xyzzy") == 2
    assert "Did you mean" not in capsys.readouterr().err


def test_the_version() -> None:
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    assert run("-m", "flexo.commands.flexo", "--version").stdout == f"flexo {version}\n"


def test_a_command_is_the_same_under_both_names(tmp_path: Path) -> None:
    console = Path(sys.executable).parent
    both = []
    for program in (["flexo", "inspect"], ["flexo", "help", "inspect"], ["flexo-inspect"]):
        asked = [] if "help" in program else ["--help"]
        done = subprocess.run([console / program[0], *program[1:], *asked], capture_output=True, text=True)
        assert done.returncode == 0
        both.append(" ".join(done.stdout.replace("flexo-inspect", "flexo inspect").split()))
    assert both[0] == both[1] == both[2] and "Usage: flexo inspect [OPTIONS] {path}" in both[0]


def test_flags_before_a_command_are_meant_for_it(tmp_path: Path) -> None:
    done = run("-m", "flexo.commands.flexo", "-v", "inspect", tmp_path / "none.pt")
    assert done.returncode == 1 and "Traceback" in done.stderr and "\nerror: " in done.stderr
    done = run("-m", "flexo.commands.flexo", "-v", "train-expert", "debug=fats")
    assert done.returncode == 1 and "Traceback" in done.stderr and "\nerror: debug=fats: " in done.stderr
    assert run("-m", "flexo.commands.flexo", "-q").stdout == overview() + "\n"


def test_a_root_script_runs_as_python_would_run_it() -> None:
    by_flexo, by_python = run("-m", "flexo.commands.flexo", "train-expert", "--help"), run("train_expert.py", "--help")
    assert by_flexo.returncode == by_python.returncode == 0 and by_flexo.stdout == by_python.stdout
    wrong = run("-m", "flexo.commands.flexo", "train-router", "rooter.x=1")
    assert wrong.returncode == 1 and wrong.stderr.endswith("See python train_router.py --help\n")


def test_a_root_script_is_the_main_module_as_with_python_m(tmp_path: Path) -> None:
    """Lightning, and the launcher for SLURM, start the same run again by the name of the main module."""
    (tmp_path / "a_script.py").write_text(
        "import sys\nspec = sys.modules['__main__'].__spec__\n"
        "print(spec.name, spec.origin == sys.argv[0], sys.argv[1:])\n"
    )
    code = (
        f"import sys; sys.path.insert(0, {str(tmp_path)!r})\n"
        "from flexo.commands import start\nfrom flexo.commands.table import Command\n"
        "start(Command('x', 'script', 'trainers', '', 'a_script'), 'flexo script', ['+domain=math'])"
    )
    assert run("-c", code).stdout == "a_script True ['+domain=math']\n"
