"""`flexo-compress`: an expert file again, smaller.

flexo-compress experts/math.pt --size 2MB -o experts/math-small.pt
flexo-compress experts/math.pt --rank 16 -o experts/math-16.pt
flexo-compress experts/math-small.pt --whole -o experts/math-whole.pt
"""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from flexo.console import new_app, progress, run, size_text
from merge.commands.options import parse_size, usage

app = new_app("Write an expert file again with less of its difference from the public network.")


def main() -> None:
    run(app)


@app.command(
    epilog="Examples:\n\n`flexo-compress experts/math.pt --size 2MB -o experts/math-small.pt`\n\n"
    "`flexo-compress experts/math.pt --keep 0.9 -o experts/math-small.pt`"
)
def compress_command(
    expert: Annotated[Path, typer.Argument(help="An expert file.")],
    output: Annotated[Path, typer.Option("-o", "--output", help="The expert file to make.")],
    rank: Annotated[int | None, typer.Option(help="The rank that the difference of every weight gets.")] = None,
    size: Annotated[
        int | None,
        typer.Option(
            parser=partial(parse_size, least=1), metavar="SIZE", help="The largest size of the file: 500kB, 2MB, bytes."
        ),
    ] = None,
    keep: Annotated[
        float | None, typer.Option(help="The share of the difference's squared norm to keep, such as 0.9.")
    ] = None,
    anchor: Annotated[Path | None, typer.Option(help="The anchor's folder. [default: where the file says]")] = None,
    whole: Annotated[
        bool, typer.Option("--whole", help="Write whole weights; alone, of a file that holds factors.")
    ] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace a file that stands at the output.")] = False,
) -> None:
    """Cut an expert's difference from the public network to its largest singular values, after training."""
    from merge.planning.compress import RankBudget, compress

    with usage():
        given = any(value is not None for value in (rank, size, keep))
        budget = RankBudget(rank, size, keep) if given else None
        made = compress(expert, output, budget, anchor=anchor, whole=whole, overwrite=overwrite, progress=progress)
    said = f"wrote {output}: {size_text(made.nbytes_before)} became {size_text(made.nbytes)}"
    if made.ranks:
        ranks = sorted(made.ranks.values())
        said += f", ranks {ranks[0]} to {ranks[-1]}"
    typer.echo(f"{said}, {made.kept:.1%} of the squared norm of what training added")
    unmeasured = "its header states no losses after training, for they were measured before: see flexo-eval; "
    typer.echo(f"{unmeasured if given else ''}it is unsigned: flexo-sign signs it")
