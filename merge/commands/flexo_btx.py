"""`flexo-btx specialists/* --anchor anchor/ -o btx/`: a mixture of dense specialists."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from flexo.console import comma_list, new_app, progress, run
from merge.commands.options import Models, Output

app = new_app("Make a FlexOlmo model of dense specialists: their networks as experts, the rest averaged (BTX).")


def main() -> None:
    run(app)


@app.command(
    epilog="Examples:\n\n`flexo-btx specialists/* --anchor anchor/ -o btx/`, then "
    "`python train_router.py merged=btx output=btx-rt`\n\n"
    "`flexo-btx specialists/math specialists/code --anchor anchor/ -o btx/ --rows model/`"
)
def btx_command(
    specialists: Models,
    output: Output,
    anchor: Annotated[Path, typer.Option(help="The anchor that they were trained from; it becomes the public expert.")],
    names: Annotated[
        str | None, typer.Option(help="Domains, separated by commas. [default: the names of the folders]")
    ] = None,
    top_k: Annotated[
        int | None, typer.Option(help="Active experts per token, public included. [default: all, at most 4]")
    ] = None,
    rows: Annotated[
        Path | None, typer.Option(help="Take the router rows of this merged model. [default: random rows]")
    ] = None,
    seed: Annotated[int, typer.Option(help="Of random rows.")] = 0,
) -> None:
    """Put specialists' feed-forward networks side by side as experts; embeddings, attention and norms are averaged."""
    from merge.baselines.btx import MixtureOptions, btx

    domains, options = comma_list(names, "--names") if names else None, MixtureOptions(top_k, rows, seed)
    btx(specialists, anchor, output, names=domains, options=options, progress=progress)
    typer.echo(f"wrote {output}/  next: python train_router.py merged={output} output={output.name}-rt")
