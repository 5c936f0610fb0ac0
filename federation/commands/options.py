"""Options that several subcommands have."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from federation.history.commit import Coordinator

HOME = Path(".flexo-federation")
HomeOption = Annotated[
    Path,
    typer.Option("--home", envvar="FLEXO_FEDERATION", help="The folder in which this member remembers the federation."),
]
KeysOption = Annotated[
    Path, typer.Option("--keys", envvar="FLEXO_FEDERATION_KEYS", help="The folder of the coordinator's keys.")
]
OwnerKey = Annotated[
    list[Path], typer.Option("--key", help="The owner's private key; while keys change, the old one and the new one.")
]
Reason = Annotated[str, typer.Option("--reason", help="Why; kept in the history, for everybody to read.")]


def coordinator(home: Path, keys: Path) -> Coordinator:
    """The member with the keys."""
    from federation.history.commit import Coordinator
    from federation.roles.home import open_home

    return Coordinator(open_home(home), keys)
