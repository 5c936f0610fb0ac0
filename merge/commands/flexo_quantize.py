"""`flexo-quantize`: a merged model with its experts in 8 or 4 bits.

flexo-quantize model/ --bits 8 -o model-int8/
flexo-quantize model/ --bits 4 --group-size 32 -o model-int4/
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from flexo.console import new_app, progress, run, size_text
from merge.commands.options import Output, usage

quantize_app = new_app("Write a merged model with its experts in 8 or 4 bits.")


def main() -> None:
    run(quantize_app)


@quantize_app.command(
    epilog="Examples:\n\n`flexo-quantize model/ --bits 8 -o model-int8/`\n\n"
    "`flexo-quantize model/ --bits 4 --group-size 32 -o model-int4/`"
)
def quantize_command(
    model: Annotated[Path, typer.Argument(help="A folder made by flexo-merge.")],
    output: Output,
    bits: Annotated[int, typer.Option(help="8 or 4, for each weight of an expert.")] = 8,
    group_size: Annotated[
        int | None,
        typer.Option(help="Weights that share a scale. [default: 128, or the largest power of two that divides]"),
    ] = None,
) -> None:
    """Quantise the experts, each weight alone; router, norms, embeddings and attention stay as they are."""
    from merge.planning.quantize import quantize

    with usage():
        made = quantize(model, output, bits=bits, group_size=group_size, progress=progress)
    assert made.scheme is not None
    typer.echo(
        f"wrote {output}/: experts in {bits} bits, {made.scheme.group_size} weights to a scale; "
        f"{size_text(made.base.weights.nbytes)} became {size_text(made.nbytes)}"
    )
    typer.echo(f"try: echo 'Once upon a time' | flexo-generate {output}")
