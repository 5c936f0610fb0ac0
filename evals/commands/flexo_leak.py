"""`flexo-leak`: what can be got out of an expert file or a model: which documents were trained on, and their text.

flexo-leak expert.pt --members train.jsonl --non-members test.jsonl --against anchor/
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from flexo.console import comma_list, new_app, run
from inference.commands.options import Device, Dtype

app = new_app("Measure what can be got out of a model.")


def main() -> None:
    run(app)


@app.command(
    epilog="Examples:\n\n`flexo-leak expert.pt --members train.jsonl --non-members test.jsonl --against anchor/`"
)
def leak(
    model: Annotated[str, typer.Argument(metavar="[NAME=]MODEL", help="An expert file, or a model's folder.")],
    members: Annotated[Path | None, typer.Option(help="Documents that it was trained on.")] = None,
    non_members: Annotated[
        Path | None, typer.Option(help="Documents of the same source that it was not trained on.")
    ] = None,
    against: Annotated[
        Path | None,
        typer.Option(help="The anchor. [default: the public expert of a merged folder]"),
    ] = None,
    domains: Annotated[
        Path | None, typer.Option(help="A folder with one corpus folder a domain, as flexo-data sample makes it.")
    ] = None,
    never: Annotated[
        Path | None, typer.Option(help="A model that was merged without an expert, to compare with.")
    ] = None,
    parts: Annotated[
        str | None, typer.Option(help="Which, separated by commas. [default: all that can be run]")
    ] = None,
    max_bytes: Annotated[int, typer.Option(min=1, help="Text to read of members, and of non-members.")] = 1_000_000,
    dtype: Dtype = "auto",
    device: Device = "auto",
) -> None:
    """Attack a model with the text of its owner at hand, and print what the attacks got."""
    from evals.privacy.attacks.part import Extra
    from evals.privacy.leak import Texts
    from evals.privacy.leak import leak as attack
    from inference.load import quiet

    quiet()
    wanted = comma_list(parts, "--parts") if parts else None
    found = attack(
        model,
        Texts(members, non_members, Extra(domains, never)),
        against=against,
        parts=wanted,
        max_bytes=max_bytes,
        dtype=dtype,
        device=device,
    )
    for row in found.rows:
        typer.echo(f"{row.part}: {row.figure}: {row.value:.4f} (anchor {row.reference})")
