"""`flexo-btx specialists/* --anchor anchor/ -o btx/`: a mixture of dense specialists."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from flexo.console import new_app, progress, run
from flexo.errors import InputError
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
    from flexo.atomic_files import refuse_occupied
    from merge.baselines.btx import open_anchor_of, write_mixture
    from merge.baselines.soup import average
    from merge.formats.model_folder import name_of

    refuse_occupied(output)
    made = average(specialists)
    domains = names.split(",") if names else [name_of(folder) for folder in specialists]
    if len(domains) != len(specialists):
        raise InputError(f"--names {names}: {len(domains)} names for {len(specialists)} specialists.")
    opened = open_anchor_of(anchor)
    with progress("writing", made.models[0].nbytes * (len(specialists) + 1)) as advance:
        write_mixture(opened, made, domains, output, top_k=top_k, rows=rows, seed=seed, advance=advance)
    typer.echo(f"wrote {output}/  next: python train_router.py merged={output} output={output.name}-rt")
