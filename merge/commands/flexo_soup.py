"""`flexo-soup specialists/* -o soup/`: an average of dense models."""

from __future__ import annotations

from typing import Annotated

import typer

from flexo.console import new_app, progress, run
from flexo.errors import InputError
from merge.commands.options import Models, Output

app = new_app("Average dense models of one origin into one dense model.")


def main() -> None:
    run(app)


@app.command(
    epilog="Examples:\n\n`flexo-soup specialists/* -o soup/`\n\n"
    "`flexo-soup anchor specialists/math specialists/code -o soup/ --weights 1,2,1`"
)
def soup_command(
    models: Models,
    output: Output,
    weights: Annotated[
        str | None, typer.Option(help="How much each model counts, separated by commas. [default: all the same]")
    ] = None,
) -> None:
    """Average dense models, tensor by tensor, into one plain OLMo-2 folder."""
    from merge.baselines.soup import soup

    made = soup(models, output, weights=_numbers(weights) if weights else None, progress=progress)
    for model, weight in zip(made.models, made.weights, strict=True):
        typer.echo(f"{weight:7.1%}  {model.folder}")
    typer.echo(f"wrote {output}/")


def _numbers(text: str) -> list[float]:
    try:
        return [float(part) for part in text.split(",")]
    except ValueError:
        raise InputError(f"--weights {text}: expected numbers separated by commas, such as 1,2,1.") from None
