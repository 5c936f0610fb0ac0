"""How much a command says: `-q` leaves errors alone on stderr, `-v` adds details and the traceback of a refusal.

The level is kept in an environment variable, so that the processes which a command starts say as much as it does.
"""

from __future__ import annotations

import os
import sys
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from flexo.errors import InputError

VARIABLE = "FLEXO_VERBOSITY"  # quiet, verbose, or not set
QUIET_FLAGS, VERBOSE_FLAGS = ("-q", "--quiet"), ("-v", "--verbose")
QUIET_HELP = "Only errors on stderr: no progress, no notes, no warnings."
VERBOSE_HELP = "More on stderr: details, messages of libraries, the traceback of a refusal."


def is_quiet() -> bool:
    return os.environ.get(VARIABLE) == "quiet"


def is_verbose() -> bool:
    return os.environ.get(VARIABLE) == "verbose"


def set_level(quiet: bool, verbose: bool) -> None:
    """Changes how much is said from here on; both False change nothing. Raises `InputError` if both are True."""
    if quiet and verbose:
        raise InputError("--quiet and --verbose: one asks for less and the other for more. Give one of them.")
    if quiet or verbose:
        os.environ[VARIABLE] = "quiet" if quiet else "verbose"
    if quiet:
        import logging  # here, for `flexo` alone needs none of it

        warnings.simplefilter("ignore")
        logging.disable(logging.WARNING)


def take_flags(arguments: Sequence[str]) -> list[str]:
    """The arguments of a command line without the two flags, which are obeyed. Nothing after `--` is a flag."""
    end = arguments.index("--") if "--" in arguments else len(arguments)
    given = arguments[:end]
    set_level(any(flag in given for flag in QUIET_FLAGS), any(flag in given for flag in VERBOSE_FLAGS))
    return [word for word in given if word not in (*QUIET_FLAGS, *VERBOSE_FLAGS)] + list(arguments[end:])


@contextmanager
def kept_level() -> Iterator[None]:
    """Puts the level back at the end of a command: tests and studies run several in one process."""
    import logging

    before, disabled = os.environ.get(VARIABLE), logging.root.manager.disable
    with warnings.catch_warnings():
        try:
            yield
        finally:
            os.environ.pop(VARIABLE, None)
            if before is not None:
                os.environ[VARIABLE] = before
            logging.disable(disabled)


def note(text: str) -> None:
    """Something worth knowing, on stderr, unless quiet."""
    _say(f"note: {text}")


def warn(text: str) -> None:
    """Something that may well be wrong, on stderr, unless quiet."""
    _say(f"warning: {text}")


def detail(text: str) -> None:
    """Something for those who ask for more, on stderr."""
    if is_verbose():
        _say(text)


def _say(line: str) -> None:
    if not is_quiet():
        sys.stderr.write(f"{line}\n")
