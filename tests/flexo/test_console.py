from __future__ import annotations

import os
import signal
import sys
import threading
import time
from pathlib import Path

import pytest
import typer

from flexo.console import ProgressLines, new_app, progress, refusals, run, time_text
from flexo.errors import InputError
from flexo.verbosity import VARIABLE
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


class FakeClock:
    """Seconds that pass when a test says so."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def test_progress_without_a_terminal_is_a_line_every_ten_seconds(capsys: pytest.CaptureFixture[str]) -> None:
    clock = FakeClock()
    lines = ProgressLines("merging", 4_800_000_000, "bytes", clock)
    for _ in range(41):  # half a second each, after the first
        lines.advance(30_000_000)
        clock.now += 0.5
    assert capsys.readouterr() == ("", (
        "merging: 630.00 MB of 4.80 GB (13%), 60.00 MB/s, 1 min 10 s left\n"
        "merging: 1.23 GB of 4.80 GB (26%), 60.00 MB/s, 1 min 0 s left\n"
    ))  # fmt: skip


def test_a_work_that_goes_on_where_it_stopped_does_not_count_that_as_its_speed(
    capsys: pytest.CaptureFixture[str],
) -> None:
    clock = FakeClock()
    lines = ProgressLines("training", 100_000, "tokens", clock)
    lines.advance(50_000)  # of the run before
    for amount in (1_000, 500):
        clock.now += 10
        lines.advance(amount)
    assert capsys.readouterr().err == (
        "training: 51,000 of 100,000 tokens (51%), 100 tokens/s, 8 min 10 s left\n"
        "training: 51,500 of 100,000 tokens (52%), 50 tokens/s, 16 min 10 s left\n"
    )


def test_what_has_no_end_or_does_not_move_has_no_time_left(capsys: pytest.CaptureFixture[str]) -> None:
    clock = FakeClock()
    lines = ProgressLines("reading", None, "documents", clock)
    for amount in (0, 3, 0):
        lines.advance(amount)
        clock.now += 11
    slow = ProgressLines("learning", 8, "classifiers", clock)
    for _ in range(2):
        slow.advance(0)
        clock.now += 20
    assert capsys.readouterr().err == (
        "reading: 3 documents, 0.27 documents/s\n"
        "reading: 3 documents, 0.14 documents/s\n"
        "learning: 0 of 8 classifiers (0%)\n"
    )


def test_a_step_that_takes_long_does_not_silence_the_lines(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("flexo.console.LINE_SECONDS", 0.01)
    monkeypatch.setattr("flexo.console.TICK", 0.005)
    said = ""
    with progress("training", 10, "steps") as advance:
        advance(0)
        time.sleep(0.02)
        advance(2)
        while "training: 2 of 10 steps (20%)" not in said or said.count("left") < 3:  # no further call
            said += capsys.readouterr().err
    assert not [thread for thread in threading.enumerate() if thread.name == "progress"]


def test_seconds_as_people_say_them() -> None:
    assert [time_text(seconds) for seconds in (0.4, 59.6, 200, 3600, 18_600)] == [
        "0 s", "1 min 0 s", "3 min 20 s", "1 h 0 min", "5 h 10 min"
    ]  # fmt: skip


@pytest.mark.parametrize("terminal", [True, False])
def test_quiet_shows_no_progress(
    terminal: bool, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: terminal)
    monkeypatch.setenv(VARIABLE, "quiet")
    monkeypatch.setattr("flexo.console.LINE_SECONDS", 0.0)
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
