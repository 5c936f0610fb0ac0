from __future__ import annotations

import os
import signal
import sys
from pathlib import Path

import pytest
import typer

from flexo.console import new_app, progress, refusals, run
from flexo.errors import InputError
from tests.merge.tools import call


def code_of(error: BaseException) -> object:
    with pytest.raises(SystemExit) as stop, refusals():
        raise error
    return stop.value.code


def test_a_refusal_is_one_message_and_exit_code_1(capsys: pytest.CaptureFixture[str]) -> None:
    assert code_of(InputError("x.pt: no such file.")) == 1
    assert capsys.readouterr() == ("", "error: x.pt: no such file.\n")


def test_stop_signals_become_exit_codes_and_unwind(capsys: pytest.CaptureFixture[str]) -> None:
    assert code_of(KeyboardInterrupt()) == 130
    assert "stopped" in capsys.readouterr().err
    before = signal.getsignal(signal.SIGTERM)
    unwound = []
    with pytest.raises(SystemExit) as stop, refusals():
        try:
            os.kill(os.getpid(), signal.SIGTERM)
            signal.pause()
        finally:
            unwound.append(True)
    assert stop.value.code == 143 and unwound and signal.getsignal(signal.SIGTERM) == before


def test_a_lack_of_permission_is_a_refusal(capsys: pytest.CaptureFixture[str], locked: Path) -> None:
    with pytest.raises(SystemExit) as stop, refusals():
        (locked / "file").read_text()
    assert stop.value.code == 1 and f"error: {locked / 'file'}: not allowed" in capsys.readouterr().err


def test_our_own_mistakes_stay_tracebacks() -> None:
    with pytest.raises(ZeroDivisionError), refusals():
        raise ZeroDivisionError


def test_a_command_in_typer_ends_the_same_way(capsys: pytest.CaptureFixture[str]) -> None:
    app = new_app("A test.")
    errors = {"input": InputError("x: refused."), "stop": KeyboardInterrupt(), "pipe": BrokenPipeError(32, "pipe")}

    @app.command()
    def main(name: str) -> None:
        if name in errors:
            raise errors[name]
        typer.echo("done")

    assert call(lambda: run(app), "none") == 0
    assert call(lambda: run(app), "input") == 1
    assert call(lambda: run(app), "stop") == 130
    out, err = capsys.readouterr()
    assert out == "done\n" and err == "error: x: refused.\nstopped: nothing unfinished was kept.\n"
    assert call(lambda: run(app), "--nonsense") == 2
    assert call(lambda: run(app)) == 2
    assert call(lambda: run(app), "-h") == 0


def test_progress_is_silent_without_a_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    with progress("working", 10) as advance:
        advance(5)
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize(("unit", "shown"), [("bytes", "5.0/10.0 MB"), ("tokens", "5000000/10000000")])
def test_progress_on_a_terminal_shows_rate_and_time_left(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, unit: str, shown: str
) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    monkeypatch.setenv("COLUMNS", "120")
    with progress("working", 10_000_000, unit) as advance:
        advance(5_000_000)
    err = capsys.readouterr().err
    assert "working" in err and shown in err
