"""`flexo-audit`: what expert files of strangers do to public text, before they are merged.

flexo-audit experts/*.pt --anchor anchor/
flexo-audit experts/*.pt --anchor anchor/ --public texts/wiki.jsonl.gz --mass 0.5 0.8 --json
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from evals.audit.policy import Audit, Limits
from flexo.console import new_app, run
from flexo.errors import InputError
from inference.commands.options import Device, Dtype

app = new_app("Measure what expert files do to public text, and refuse by policy.")


def main() -> None:
    run(app)


@app.command(
    epilog="Examples:\n\n`flexo-audit experts/*.pt --anchor anchor/`\n\n"
    "`flexo-audit experts/math.pt --anchor anchor/ --layers`\n\n"
    "`flexo-audit experts/*.pt --anchor anchor/ --public texts/wiki.jsonl.gz --mass 0.5 0.8 --json`"
)
def audit_command(
    experts: Annotated[list[Path], typer.Argument(help="Expert files for one anchor.")],
    anchor: Annotated[Path, typer.Option(help="The anchor that they were trained with.")],
    public: Annotated[
        Path | None,
        typer.Option(
            help="Public text: a file of documents, or a folder with test.jsonl[.gz]. [default: the anchor's]"
        ),
    ] = None,
    max_bytes: Annotated[int, typer.Option(min=1, help="Text to read.")] = 100_000,
    mass: Annotated[
        tuple[float, float],
        typer.Option(
            "--mass",
            "--share",
            metavar="WARN REFUSE",
            help="Router mass on public text taken from the public expert, mean over layers. --share is its old name.",
        ),
    ] = Limits.mass,
    loss: Annotated[
        tuple[float, float],
        typer.Option(metavar="WARN REFUSE", help="Rise of the loss on public text: 0.05 is 5 % more."),
    ] = Limits.loss,
    outlier: Annotated[
        float, typer.Option(min=1.0, help="Warn about rows so many times longer or shorter than the median.")
    ] = Limits.outlier,
    layers: Annotated[bool, typer.Option("--layers", help="Also print every layer of every expert.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print all figures as JSON.")] = False,
    dtype: Dtype = "auto",
    device: Device = "auto",
) -> None:
    """Run every expert alone beside the public one, and all together, on public text; exit with 1 if one is refused.

    The files are merged in the folder for temporary files (TMPDIR), which must have room for the model.
    """
    from evals.audit.audit import audit
    from inference.load import quiet

    for name, (warn, refuse) in (("--mass", mass), ("--loss", loss)):
        if not warn <= refuse:
            raise typer.BadParameter(
                f"{name} {warn:g} {refuse:g}: the second number refuses and must not be below the first, which warns."
            )
    quiet()
    limits = Limits(mass, loss, outlier)
    found = audit(experts, anchor, limits, public, max_bytes, dtype, device)
    if as_json:
        typer.echo(json.dumps(found.to_dict(), indent=2))
    else:
        _show(found, layers)
    if bad := [expert.file for expert in found.experts if expert.refusals]:
        raise InputError(f"{', '.join(bad)}: refused by the audit. Merge the others, or ask the owners.")


def _show(found: Audit, layers: bool) -> None:
    from rich import box
    from rich.console import Console
    from rich.table import Table

    console = Console(width=10_000)
    table = Table(
        "expert", "mass alone", "worst layer", "mass of all", "loss alone", "loss without", "margin", "verdict",
        box=box.MARKDOWN,
    )  # fmt: skip
    for expert in found.experts:
        if not expert.layers:
            table.add_row(Path(expert.file).name, *"------", expert.verdict)
            continue
        worst = max(range(len(expert.layers)), key=lambda n: expert.layers[n].mass_alone)
        margins = [layer.margin for layer in expert.layers if layer.margin is not None]
        table.add_row(
            expert.domain,
            f"{expert.mass_alone:.3f}",
            f"{expert.layers[worst].mass_alone:.3f} in {worst}",
            f"{expert.mass_all:.3f}",
            f"{expert.loss_alone:.3f}",
            f"{expert.loss_without:.3f}",
            f"{max(margins):.1f}" if margins else "-",
            expert.verdict,
        )
    console.print(table)
    if layers:
        header = ("expert", "layer", "mass alone", "mass of all", "entropy, bits", "norm", "margin")
        table = Table(*header, box=box.MARKDOWN)
        for expert in found.experts:
            for n, layer in enumerate(expert.layers):
                margin = "-" if layer.margin is None else f"{layer.margin:.2f}"
                figures = (f"{value:.3f}" for value in (layer.mass_alone, layer.mass_all, layer.entropy))
                table.add_row(expert.domain, str(n), *figures, f"{layer.norm:.3g}", margin)
        console.print(table)
    if found.tokens:
        typer.echo(
            f"{found.tokens} tokens of {found.text}: {found.loss_public:.3f} nats per token with the public expert "
            f"alone, {found.loss_all:.3f} with all"
        )
    for expert in found.experts:
        for kind, texts in (("refused", expert.refusals), ("warning", expert.warnings)):
            for text in texts:
                typer.echo(f"{kind}: {expert.file}: {text}")


if __name__ == "__main__":
    main()
