"""`flexo-soup` and `flexo-btx`: baselines made of dense specialists."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from merge.console import new_app, progress, run
from merge.errors import InputError

soup_app = new_app("Average dense models of one origin into one dense model.")
btx_app = new_app("Make a FlexOlmo model of dense specialists: their networks as experts, the rest averaged (BTX).")

Models = Annotated[list[Path], typer.Argument(help="Dense OLMo-2 folders, such as train_expert.py model=dense makes.")]
Output = Annotated[Path, typer.Option("-o", "--output", help="The folder to make; it must not hold anything yet.")]


def soup() -> None:
    run(soup_app)


def btx() -> None:
    run(btx_app)


@soup_app.command(
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
    from merge.dense import average, write_soup
    from merge.files import refuse_occupied

    refuse_occupied(output)
    made = average(models, _numbers(weights) if weights else None)
    for model, weight in zip(made.models, made.weights, strict=True):
        typer.echo(f"{weight:7.1%}  {model.folder}")
    with progress("averaging", made.models[0].nbytes) as advance:
        write_soup(made, output, advance)
    typer.echo(f"wrote {output}/")


@btx_app.command(
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
    from merge.dense import average, name_of, open_anchor_of, write_mixture
    from merge.files import refuse_occupied

    refuse_occupied(output)
    made = average(specialists)
    domains = names.split(",") if names else [name_of(folder) for folder in specialists]
    if len(domains) != len(specialists):
        raise InputError(f"--names {names}: {len(domains)} names for {len(specialists)} specialists.")
    opened = open_anchor_of(anchor)
    with progress("writing", made.models[0].nbytes * (len(specialists) + 1)) as advance:
        write_mixture(opened, made, domains, output, top_k=top_k, rows=rows, seed=seed, advance=advance)
    typer.echo(f"wrote {output}/  next: python train_router.py merged={output} output={output.name}-rt")


def _numbers(text: str) -> list[float]:
    try:
        return [float(part) for part in text.split(",")]
    except ValueError:
        raise InputError(f"--weights {text}: expected numbers separated by commas, such as 1,2,1.") from None
