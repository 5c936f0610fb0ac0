"""What all commands share on a terminal: how they start, refuse, stop and show progress."""

from __future__ import annotations

import ctypes
import os
import re
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager

import typer

from flexo.atomic_files import FULL
from flexo.errors import InputError

Advance = Callable[[float], None]
Progress = Callable[[str, float | None], AbstractContextManager[Advance]]  # label and total to what `progress` yields
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # malloc.h
UNITS = {"": 1, "K": 10**3, "M": 10**6, "G": 10**9, "T": 10**12}
LEAST = 10**6


def new_app(help: str) -> typer.Typer:
    """A Typer app in the project's style: short `-h`, shell completion, plain tracebacks for our own bugs."""
    return typer.Typer(
        help=help,
        no_args_is_help=True,
        pretty_exceptions_enable=False,
        rich_markup_mode="markdown",
        context_settings={"help_option_names": ["-h", "--help"]},
    )


def run(app: Callable[[], object]) -> None:
    """Runs a command: 0 done, 1 refused with one message, 2 wrong usage, 130 stopped by Ctrl-C."""
    with refusals():
        try:
            app()
        except SystemExit as stop:  # Typer has turned these two into exit codes of its own
            if isinstance(stop.__context__, BrokenPipeError):
                raise stop.__context__ from None
            if stop.code == 130:
                raise KeyboardInterrupt from None
            raise


@contextmanager
def refusals() -> Iterator[None]:
    """Turns an `InputError`, lack of permission or of room into one message and exit code 1, stops into 130 or 143."""
    before = signal.signal(signal.SIGTERM, _terminate)
    try:
        yield
    except InputError as error:
        sys.stderr.write(f"error: {error}\n")
        sys.exit(1)
    except PermissionError as error:
        sys.stderr.write(
            f"error: {error.filename or error}: not allowed to read or write this. Change its permissions.\n"
        )
        sys.exit(1)
    except KeyboardInterrupt:
        sys.stderr.write("stopped: nothing unfinished was kept.\n")
        sys.exit(130)
    except BrokenPipeError:  # the reader of our output has left (`| head`)
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(0)
    except OSError as error:
        if error.errno not in FULL:
            raise
        sys.stderr.write(f"error: {error.filename or 'the output'}: the disk is full. Free some room and try again.\n")
        sys.exit(1)
    finally:
        signal.signal(signal.SIGTERM, before)


def _terminate(signum: int, _frame: object) -> None:
    sys.exit(128 + signum)  # SystemExit unwinds, so unfinished output is removed


@contextmanager
def progress(label: str, total: float | None, unit: str = "bytes") -> Iterator[Advance]:
    """Shows a bar with rate and time left on a terminal, and nothing elsewhere. Yields the function that advances it.

    `unit` names what `total` counts; bytes are shown as MB.
    """
    if not sys.stderr.isatty():
        yield lambda _amount: None
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


def parse_size(text: str) -> int:
    """The bytes of `5GB`, `1.5 gb` or `5000000000`; raises `typer.BadParameter` for anything else, or under 1 MB."""
    found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([KMGT]?)B?", text.strip().upper(), re.ASCII)
    if not found:
        raise typer.BadParameter(f"{text!r} is no size. Write 5GB, 500MB, or a number of bytes.")
    size = round(float(found[1]) * UNITS[found[2]])
    if size < LEAST:
        raise typer.BadParameter(f"{text!r} is {size} bytes, expected 1MB or more. Is the unit missing, as in 5GB?")
    return size


def size_text(nbytes: int) -> str:
    return f"{nbytes / 1e9:.2f} GB" if nbytes >= 1e9 else f"{nbytes / 1e6:.2f} MB"


def keep_freed_memory() -> None:
    """Tells glibc to keep large freed blocks for the next step instead of returning their pages to the kernel.

    A step frees and allocates its logits and activations anew, and faulting the pages in again cost a quarter to a
    third of the time of a tiny model's step. Does nothing with another C library.
    """
    if sys.platform != "linux":
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(M_MMAP_THRESHOLD, 1 << 30)
        mallopt(M_TRIM_THRESHOLD, (1 << 31) - 1)
