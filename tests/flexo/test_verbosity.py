"""`-q` and `-v`: the same for every command, for what it starts, and gone when it ends."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
from pathlib import Path

import pytest
import typer

from flexo.console import new_app, run
from flexo.verbosity import VARIABLE, take_flags
from tests.merge.tools import call

ROOT = Path(__file__).resolve().parents[2]

PROGRAM = """
import logging, os, subprocess, sys, warnings
import typer
from flexo.console import new_app, run
from flexo.errors import InputError
from flexo.verbosity import detail, note, warn

app = new_app("A test.")

@app.command()
def main(name: str, times: int = 1) -> None:
    detail("a detail")
    note("a note")
    warn("a warning")
    warnings.warn("of a library")
    logging.getLogger("library").warning("of a logger")
    if name == "refuse":
        raise InputError("x: refused.")
    child = [sys.executable, "-c", "import os; print(os.environ.get('FLEXO_VERBOSITY'))"]
    typer.echo(f"{name} {times} {subprocess.check_output(child, text=True)}", nl=False)

run(app)
"""


def said(*arguments: str) -> tuple[int, str, str]:
    """Runs a command and returns its exit code, stdout and stderr."""
    environment = {name: value for name, value in os.environ.items() if name != VARIABLE}
    command = [sys.executable, "-c", PROGRAM, *arguments]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    return done.returncode, done.stdout, done.stderr


def test_by_default_notes_and_warnings_are_said() -> None:
    code, out, err = said("name", "--times", "2")
    assert (code, out) == (0, "name 2 None\n")
    assert err.startswith("note: a note\nwarning: a warning\n")
    assert "UserWarning: of a library" in err and err.endswith("of a logger\n")


@pytest.mark.parametrize("flag", ["-q", "--quiet"])
def test_quiet_leaves_the_result_and_errors(flag: str) -> None:
    assert said("name", flag) == (0, "name 1 quiet\n", "")
    assert said(flag, "refuse") == (1, "", "error: x: refused.\n")


@pytest.mark.parametrize("flag", ["-v", "--verbose"])
def test_verbose_adds_details_and_the_traceback_of_a_refusal(flag: str) -> None:
    code, out, err = said("name", flag)
    assert (code, out) == (0, "name 1 verbose\n")
    assert err.startswith("a detail\n") and " of memory\n" in err and "took 0." in err
    code, _, err = said("refuse", flag)
    assert code == 1 and "Traceback (most recent call last):" in err and "\nerror: x: refused.\n" in err


def test_both_are_refused() -> None:
    code, _, err = said("name", "-q", "-v")
    assert code == 1 and "--quiet and --verbose" in err


def test_a_group_takes_them_before_and_after_its_command(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv(VARIABLE, raising=False)
    app = new_app("A group.")

    @app.callback()
    def group() -> None:
        """A group."""

    @app.command()
    def part() -> None:
        """A part."""
        typer.echo(f"{os.environ.get(VARIABLE)} {logging.root.manager.disable}")

    for arguments in (["-q", "part"], ["part", "-q"], ["part"]):
        assert call(lambda: run(app), *arguments) == 0
        assert VARIABLE not in os.environ and logging.root.manager.disable == logging.NOTSET
    assert capsys.readouterr() == ("quiet 30\nquiet 30\nNone 0\n", "")
    assert call(lambda: run(app), "part", "--help") == 0
    assert "--quiet" in capsys.readouterr().out


def test_a_function_stays_what_it_was() -> None:
    app = new_app("A test.")

    def main(name: str) -> str:
        return name

    assert app.command()(main) is main and main("x") == "x"


def test_flags_are_taken_out_of_a_command_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(VARIABLE, raising=False)
    assert take_flags(["+domain=math", "seed=1"]) == ["+domain=math", "seed=1"] and VARIABLE not in os.environ
    monkeypatch.setenv(VARIABLE, "")
    assert take_flags(["-v", "+domain=math", "--", "-q"]) == ["+domain=math", "--", "-q"]
    assert os.environ[VARIABLE] == "verbose"


def test_training_scripts_take_them(tmp_path: Path) -> None:
    """What Hydra is given is the rest of the command line."""
    for flags, traceback in (["--quiet"], False), (["-v"], True), ([], False):
        command = [sys.executable, ROOT / "train_expert.py", *flags, "debug=fats"]
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
        assert done.returncode == 1 and "error: debug=fats: there is no such debug." in done.stderr
        assert ("Traceback" in done.stderr) == traceback
