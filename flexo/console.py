"""What all commands share on a terminal: how they start, refuse, stop and show progress."""

from __future__ import annotations

import functools
import inspect
import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer

from flexo.atomic_files import FULL
from flexo.cpu_threads import share_processors
from flexo.errors import InputError
from flexo.verbosity import (
    QUIET_FLAGS,
    QUIET_HELP,
    VERBOSE_FLAGS,
    VERBOSE_HELP,
    detail,
    is_quiet,
    is_verbose,
    kept_level,
    set_level,
)

Advance = Callable[[float], None]
Progress = Callable[[str, float | None], AbstractContextManager[Advance]]  # label and total to what `progress` yields
Clock = Callable[[], float]
LINE_SECONDS = 10.0  # between two lines of progress where there is no terminal
TICK = 1.0  # seconds between two looks whether a line is due


class App(typer.Typer):
    """A Typer app whose commands all take `--quiet` and `--verbose`, beside the options that they declare."""

    def command(self, *names: Any, **settings: Any) -> Callable[[Any], Any]:
        return _with_levels(super().command(*names, **settings))

    def callback(self, *names: Any, **settings: Any) -> Callable[[Any], Any]:
        return _with_levels(super().callback(*names, **settings))


def _with_levels(register: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """A decorator that registers a function with two more options, and leaves the function itself as it is."""
    added = [
        inspect.Parameter("quiet", inspect.Parameter.KEYWORD_ONLY, default=False,
                          annotation=Annotated[bool, typer.Option(*QUIET_FLAGS, help=QUIET_HELP)]),
        inspect.Parameter("verbose", inspect.Parameter.KEYWORD_ONLY, default=False,
                          annotation=Annotated[bool, typer.Option(*VERBOSE_FLAGS, help=VERBOSE_HELP)]),
    ]  # fmt: skip

    def decorate(function: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(function)
        def called(*given: Any, quiet: bool, verbose: bool, **options: Any) -> Any:
            set_level(quiet, verbose)
            return function(*given, **{name: at_home(value) for name, value in options.items()})

        signature = inspect.signature(function, eval_str=True)
        called.__dict__["__signature__"] = signature.replace(parameters=[*signature.parameters.values(), *added])
        register(called)
        return function

    return decorate


def at_home(value: Any) -> Any:
    """An option with `~` expanded in it, if it is a path: a shell leaves `--anchor=~/anchor` as it is."""
    if isinstance(value, list):
        return [at_home(part) for part in value]
    return value.expanduser() if isinstance(value, Path) else value


def new_app(help: str) -> App:
    """A Typer app in the project's style: short `-h`, shell completion, plain tracebacks for our own bugs."""
    return App(
        help=help,
        no_args_is_help=True,
        pretty_exceptions_enable=False,
        rich_markup_mode="markdown",
        context_settings={"help_option_names": ["-h", "--help"]},
    )


def run(app: Callable[[], object]) -> None:
    """Runs a command: 0 done, 1 refused with one message, 2 wrong usage, 130 stopped by Ctrl-C."""
    with session(), refusals():
        try:
            app()
        except SystemExit as stop:  # Typer has turned these two into exit codes of its own
            if isinstance(stop.__context__, BrokenPipeError):
                raise stop.__context__ from None
            if stop.code == 130:
                raise KeyboardInterrupt from None
            raise


@contextmanager
def session() -> Iterator[None]:
    """The time of one command: its `-q` or `-v` ends with it, and under `-v` it says at the end what it took.

    No command has imported PyTorch by then, so this is where its threads are told how to share the machine.
    """
    began = time.monotonic()
    share_processors()
    with kept_level():
        try:
            yield
        finally:
            if is_verbose():
                detail(_what_it_took(time.monotonic() - began))


@contextmanager
def refusals() -> Iterator[None]:
    """Turns an `InputError`, lack of permission or of room into one message and exit code 1, stops into 130 or 143."""
    before = signal.signal(signal.SIGTERM, _terminate)
    try:
        yield
    except InputError as error:
        _refuse(str(error))
    except PermissionError as error:
        _refuse(f"{error.filename or error}: not allowed to read or write this. Change its permissions.")
    except KeyboardInterrupt:
        sys.stderr.write("stopped: nothing unfinished was kept.\n")
        sys.exit(130)
    except BrokenPipeError:  # the reader of our output has left (`| head`)
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(0)
    except OSError as error:
        if error.errno not in FULL:
            raise
        _refuse(f"{error.filename or 'the output'}: the disk is full. Free some room and try again.")
    finally:
        signal.signal(signal.SIGTERM, before)


def _refuse(message: str) -> None:
    if is_verbose():
        traceback.print_exc()
    sys.stderr.write(f"error: {message}\n")
    sys.exit(1)


def _what_it_took(seconds: float) -> str:
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    return f"took {seconds:.1f} s and at most {size_text(peak)} of memory"


def _terminate(signum: int, _frame: object) -> None:
    sys.exit(128 + signum)  # SystemExit unwinds, so unfinished output is removed


@contextmanager
def progress(label: str, total: float | None, unit: str = "bytes") -> Iterator[Advance]:
    """Shows how far a work is, with its rate and the time left; nothing if quiet. Yields the function that advances it.

    On a terminal that is a bar, and elsewhere a line every ten seconds.

    Args:
        label: of the work.
        total: how much there is to do, or None if that is not known.
        unit: what `total` counts; bytes are shown as MB and GB.
    """
    if is_quiet():
        yield lambda _amount: None
        return
    if not sys.stderr.isatty():
        with ProgressLines(label, total, unit).by_themselves() as advance:
            yield advance
        return
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        DownloadColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeRemainingColumn,
        TransferSpeedColumn,
    )  # fmt: skip

    in_bytes = unit == "bytes"
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        DownloadColumn() if in_bytes else MofNCompleteColumn(),
        TransferSpeedColumn() if in_bytes else TextColumn("{task.fields[rate]}"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=Console(stderr=True)) as bars:
        task = bars.add_task(label, total=total, rate="")

        def advance(amount: float) -> None:
            bars.advance(task, amount)
            if not in_bytes:
                speed = bars.tasks[0].speed
                bars.update(task, rate=f"{speed:,.0f} {unit}/s" if speed else "")

        yield advance


@contextmanager
def no_progress(label: str, total: float | None) -> Iterator[Advance]:
    """In the place of `progress` where nobody looks: a library call prints nothing."""
    yield lambda _amount: None


class ProgressLines:
    """Says every ten seconds how far a work is, for logs: `merging: 1.20 GB of 4.80 GB (25 %), 60.00 MB/s, 60 s left`.

    The rate is that since the line before, or since the first if nothing was done meanwhile. What was done at the first
    call does not count for it: a work that goes on where it stopped starts with that.
    """

    def __init__(self, label: str, total: float | None, unit: str, clock: Clock = time.monotonic) -> None:
        self.label, self.total, self.unit, self.clock = label, total, unit, clock
        self.done = 0.0
        self._lock = threading.Lock()
        self._said_at = clock()
        self._first: tuple[float, float] | None = None  # when, and what was done by then
        self._since: tuple[float, float] | None = None

    @contextmanager
    def by_themselves(self) -> Iterator[Advance]:
        """Also says the lines while a step takes longer than that; yields `advance`."""
        ended = threading.Event()

        def keep_saying() -> None:
            while not ended.wait(TICK):
                self.say_if_due()

        thread = threading.Thread(target=keep_saying, name="progress", daemon=True)
        thread.start()
        try:
            yield self.advance
        finally:
            ended.set()
            thread.join()

    def advance(self, amount: float) -> None:
        with self._lock:
            self.done += amount
            if self._since is None:
                self._since = self._first = self.clock(), self.done
        self.say_if_due()

    def say_if_due(self) -> None:
        with self._lock:
            now = self.clock()
            if now - self._said_at < LINE_SECONDS:
                return
            if self._since is not None and self._since[1] == self.done:
                self._since = self._first
            began, before = self._since or (now, 0.0)
            rate = (self.done - before) / (now - began) if now > began else 0.0
            sys.stderr.write(f"{self._line(rate)}\n")
            self._said_at = now
            self._since = self._since and (now, self.done)

    def _line(self, rate: float) -> str:
        done = self._amount(self.done)
        if self.total:
            done = f"{done} of {self._amount(self.total)}{self._unit} ({min(self.done / self.total, 1.0):.0%})"
        else:
            done += self._unit
        parts = [f"{self.label}: {done}"]
        if rate > 0:
            parts.append(f"{self._amount(rate)}{self._unit}/s")
        if self.total and rate > 0:
            parts.append(f"{time_text(max(self.total - self.done, 0.0) / rate)} left")
        return ", ".join(parts)

    @property
    def _unit(self) -> str:
        return "" if self.unit == "bytes" else f" {self.unit}"

    def _amount(self, amount: float) -> str:
        if self.unit == "bytes":
            return size_text(amount)
        return f"{amount:,.0f}" if amount >= 10 or amount == round(amount) else f"{amount:.2g}"


def comma_list(text: str, option: str) -> list[str]:
    """The names between commas, without the blanks around them.

    Raises `InputError`, which names the `option`, where a name is missing.
    """
    found = [name.strip() for name in text.split(",")]
    if not all(found):
        raise InputError(f"{option} {text!r}: expected names with commas between them, like math,news; one is empty.")
    return found


def size_text(nbytes: float) -> str:
    return f"{nbytes / 1e9:.2f} GB" if nbytes >= 1e9 else f"{nbytes / 1e6:.2f} MB"


def time_text(seconds: float) -> str:
    """Seconds as people say them: `40 s`, `3 min 20 s`, `5 h 10 min`."""
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 1:
        return f"{rest} s"
    return f"{minutes} min {rest} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"
