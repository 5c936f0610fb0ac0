"""`flexo-serve keys add`, `list` and `revoke`."""

from __future__ import annotations

from datetime import date
from pathlib import Path
from typing import Annotated

import typer

from flexo.console import new_app
from flexo.errors import InputError

app = new_app("Make, list and revoke API keys, also while a server runs.")
KeysFile = Annotated[Path, typer.Option("--keys", help="The file of API keys.")]


@app.command("add", epilog="Examples:\n\n`flexo-serve keys add alice --experts public,math --expires 2027-01-01`")
def add(
    name: Annotated[str, typer.Argument(help="Whose key it is.")],
    experts: Annotated[str | None, typer.Option(help="What it may use, separated by commas.")] = None,
    role: Annotated[str | None, typer.Option(help="Or a role of the file, which stands for a list of experts.")] = None,
    file: KeysFile = Path("keys.yaml"),
    requests_per_minute: Annotated[int | None, typer.Option(min=1)] = None,
    tokens_per_day: Annotated[int | None, typer.Option(min=1, help="Prompts and answers together.")] = None,
    at_once: Annotated[int | None, typer.Option(min=1, help="Requests at the same time.")] = None,
    expires: Annotated[str | None, typer.Option(help="The first day on which it is not taken any more.")] = None,
) -> None:
    """Make a key, and print it this once: the file keeps its hash."""
    needs_extra()
    from serving.access.keys import add_key

    try:
        last = date.fromisoformat(expires) if expires else None
    except ValueError:
        raise InputError(f"--expires {expires}: expected a day such as 2027-01-01.") from None
    chosen = experts.split(",") if experts is not None else None
    limits = {"requests_per_minute": requests_per_minute, "tokens_per_day": tokens_per_day, "at_once": at_once}
    typer.echo(add_key(file, name, experts=chosen, role=role, expires=last, **limits))


@app.command("list", epilog="Examples:\n\n`flexo-serve keys list`")
def list_command(file: KeysFile = Path("keys.yaml")) -> None:
    """Show whose keys there are, and what they allow."""
    needs_extra()
    from serving.access.keys import KeyStore

    found = KeyStore(file).read()
    for key in found.keys:
        until = "expired" if key.expired() else f"until {key.expires}" if key.expires else "no end"
        limits = f"{key.requests_per_minute}/min, {key.tokens_per_day} tokens/day, {key.at_once} at once"
        typer.echo(f"{key.name:16} {','.join(found.experts(key)):24} {limits}; {until}")


@app.command("revoke", epilog="Examples:\n\n`flexo-serve keys revoke alice`")
def revoke(name: Annotated[str, typer.Argument(help="Whose key it is.")], file: KeysFile = Path("keys.yaml")) -> None:
    """Take a key away, from a server that runs, too."""
    needs_extra()
    from serving.access.keys import revoke_key

    revoke_key(file, name)
    typer.echo(f"revoked {name}")


def needs_extra() -> None:
    """Raises `InputError` where the extra is not installed."""
    try:
        import fastapi  # noqa: F401
        import prometheus_client  # noqa: F401
        import uvicorn  # noqa: F401
        import yaml  # noqa: F401
    except ImportError as error:
        raise InputError(
            f"flexo-serve needs the package {error.name}. Install it: pip install -c constraints.txt 'flexo[serve]'"
        ) from None
