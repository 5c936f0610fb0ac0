"""Options that several commands have, and how they print text from strangers."""

from __future__ import annotations

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


@contextmanager
def usage() -> Iterator[None]:
    """Makes of arguments that contradict each other what Typer makes of a wrong one: a hint and exit code 2."""
    try:
        yield
    except UsageError as error:
        raise typer.BadParameter(str(error)) from None


def printable(line: str) -> str:
    """A stranger's text without what could steer a terminal."""
    return "".join(letter if letter.isprintable() else repr(letter)[1:-1] for letter in line)
