"""Subcommands for anyone who joined: status, log, verify."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from federation.commands.options import HOME, HomeOption
from flexo.console import progress, size_text
from merge.commands.options import printable

Json = Annotated[bool, typer.Option("--json", help="Everything, as JSON.")]


def status(as_json: Json = False, home: HomeOption = HOME) -> None:
    """Show who is in: version, size, licence, epsilon, key, expiry, and the models that hold each expert."""
    from federation.reader.status import read_federation, status_of
    from federation.roles.home import open_home

    about = status_of(read_federation(open_home(home)))
    if as_json:
        typer.echo(json.dumps(about, indent=2, ensure_ascii=False))
        return
    for line in _table(about):
        typer.echo(printable(line))


def log(as_json: Json = False, home: HomeOption = HOME) -> None:
    """Show the signed history, oldest first; its chain is checked to the beginning."""
    from federation.reader.status import domain_names, read_federation
    from federation.roles.home import open_home

    found = read_federation(open_home(home))
    names = domain_names(found)
    for one in found.events:
        if as_json:
            typer.echo(json.dumps({name: value for name, value in one.items() if name != "salt"}, ensure_ascii=False))
        else:
            typer.echo(printable(_line(one, names)))


def verify(
    model: Annotated[Path, typer.Argument(help="A folder that was merged.")],
    as_json: Json = False,
    home: HomeOption = HOME,
) -> None:
    """Say whether a merged folder holds exactly what is in force; exit with 1 if not, and why."""
    from federation.reader.status import read_federation
    from federation.reader.verify import verify_model
    from federation.roles.home import open_home
    from flexo.errors import InputError

    found = read_federation(open_home(home))
    with progress("reading", sum(path.stat().st_size for path in model.glob("*.safetensors"))) as advance:
        verdict = verify_model(found, model, advance)
    if as_json:
        typer.echo(
            json.dumps({"holds": not verdict.faults, "faults": verdict.faults, "notes": verdict.notes}, indent=2)
        )
    else:
        for note in verdict.notes:
            typer.echo(f"note: {printable(note)}")
    if verdict.faults:
        raise InputError(f"{model}: not what is in force:\n  " + "\n  ".join(map(printable, verdict.faults)))
    if not as_json:
        typer.echo(f"{model}: exactly what is in force")


def _table(about: dict[str, Any]) -> list[str]:
    lines = [
        f"{about['name']}  policy {about['policy']}, anchor {', '.join(one[:12] for one in about['anchors']) or '-'}"
    ]
    rows = [("domain", "serial", "standing", "size", "licence", "tokens", "epsilon", "key", "expires", "in models")]
    for one in about["owners"]:
        rows.append((
            one["domain"], str(one["serial"] or "-"), one["standing"],
            size_text(one["bytes"]) if "bytes" in one else "-", one.get("licence", "-"),
            f"{one['tokens']:,}" if "tokens" in one else "-", f"{one['epsilon']:g}" if one.get("epsilon") else "-",
            one["signed_by"][0][:12], (one["expires"] or "-")[:10], ", ".join(one.get("models", [])) or "-",
        ))  # fmt: skip
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines += ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    expiry = ", ".join(f"{role} {when[:10]}" for role, when in about["expires"].items())
    return [*lines, f"signatures hold until: {expiry}", *(f"warning: {text}" for text in about["warnings"])]


def _line(one: dict[str, Any], names: dict[str, str]) -> str:
    """An event as one line."""
    if one["what"] == "forgotten":
        return f"{one['number']:>5}  -                     forgotten  {one['digest'][:16]}"
    hidden = {"what", "when", "salt", "number", "role", "files", "experts", "manifest", "events"}
    about = {name: value for name, value in one.items() if name not in hidden and value not in ("", [], None)}
    if "experts" in one:
        about["experts"] = ", ".join(f"{names.get(e['role'], '?')} {e['serial']}" for e in one["experts"])
    text = "  ".join(f"{name} {_short(value)}" for name, value in about.items())
    return f"{one['number']:>5}  {one['when']}  {one['what']}  {text}".rstrip()


def _short(value: Any) -> str:
    if isinstance(value, list):
        return ", ".join(map(_short, value))
    text = str(value)
    return text[:12] if len(text) == 64 and set(text) <= set("0123456789abcdef") else text


COMMANDS = (status, log, verify)
