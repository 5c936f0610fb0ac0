"""Options that several commands have, and how they print text from strangers."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer

from flexo.errors import UsageError

Models = Annotated[list[Path], typer.Argument(help="Dense OLMo-2 folders, such as train_expert.py model=dense makes.")]
Output = Annotated[Path, typer.Option("-o", "--output", help="The folder to make; it must not hold anything yet.")]
TrustedKeysOption = Annotated[
    Path | None, typer.Option("--trusted-keys", help="A folder of public keys to check signatures FILE.sig with.")
]

UNITS = {"": 1, "K": 10**3, "M": 10**6, "G": 10**9, "T": 10**12}
LEAST = 10**6


@contextmanager
def usage() -> Iterator[None]:
    """Makes of arguments that contradict each other what Typer makes of a wrong one: a hint and exit code 2."""
    try:
        yield
    except UsageError as error:
        raise typer.BadParameter(str(error)) from None


def parse_size(text: str, least: int = LEAST) -> int:
    """The bytes of `5GB`, `1.5 gb` or `5000000000`; raises `typer.BadParameter` for anything else, or under `least`."""
    found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([KMGT]?)B?", text.strip().upper(), re.ASCII)
    if not found:
        raise typer.BadParameter(f"{text!r} is no size. Write 5GB, 500MB, or a number of bytes.")
    size = round(float(found[1]) * UNITS[found[2]])
    if size < least:
        raise typer.BadParameter(
            f"{text!r} is {size} bytes, expected {least:,} or more. Is the unit missing, as in 5GB?"
        )
    return size


def printable(line: str) -> str:
    """A stranger's text without what could steer a terminal."""
    return "".join(letter if letter.isprintable() else repr(letter)[1:-1] for letter in line)
