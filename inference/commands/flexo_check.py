"""`flexo-check`: run a merged model and say whether it is sound. `flexo-merge` starts it in a process of its own.

flexo-check model/ --anchor anchor/
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Annotated

import typer

from flexo.console import new_app, progress, run
from flexo.errors import InputError
from inference.commands.options import Device

app = new_app("Run a merged model and say whether it is sound.")


def main() -> None:
    run(app)


@app.command(
    epilog="Examples:\n\n`flexo-check model/ --anchor anchor/`\n\n`flexo-check model/ --anchor anchor/ --json`"
)
def check_command(
    model: Annotated[Path, typer.Argument(help="A merged folder.")],
    anchor: Annotated[Path, typer.Option(help="The anchor that it was merged with.")],
    as_json: Annotated[bool, typer.Option("--json", help="All figures, as JSON.")] = False,
    device: Device = "auto",
) -> None:
    """Compare with the anchor, look for NaN and infinity and dead routers, and read a public text."""
    from inference.check import check
    from inference.load import quiet

    quiet()
    found = check(model, anchor, device, progress)
    if as_json:
        typer.echo(json.dumps(found.to_dict(), indent=2))
    else:
        difference = f"{found.public_difference:.1g}" if found.public_difference else "0, bit for bit"
        layers = [layer for layer in found.routing.layers if layer.chooses]
        typer.echo(f"public expert against the anchor: largest difference of logits {difference}")
        if layers:
            entropies, most = [layer.entropy for layer in layers], math.log2(len(layers[0].share))
            typer.echo(
                f"router entropy over layers: {min(entropies):.2f} to {max(entropies):.2f} bits (0 certain, {most:.2f} "
                "uniform)"
            )
        if found.loss_merged is not None:
            typer.echo(f"public text: {found.loss_merged:.3f} nats per token, the anchor {found.loss_anchor:.3f}")
        else:
            typer.echo("public text: not read, for the anchor ships none")
    if found.faults:
        raise InputError(f"{model}: the merged model is not sound: {'; '.join(found.faults)}.")


if __name__ == "__main__":
    main()
