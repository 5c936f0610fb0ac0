"""`flexo-data canaries`: made-up secrets in a copy of a text, to find out what a model gives away."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from flexo.errors import InputError
from flexo.overrides import override

CANARIES_EXAMPLES = (
    "Examples:\n\n`flexo-data canaries notes.csv -o copy.jsonl.gz --manifest canaries.json`\n\n"
    "`flexo-data canaries notes.csv -o copy.jsonl.gz --manifest canaries.json --coins 1000 --unit patient`\n\n"
    "`flexo-data canaries prepared --tokenizer anchor -o copy.jsonl.gz --manifest canaries.json --repeats 1,4,16`"
)


def canaries(
    source: Annotated[
        Path, typer.Argument(metavar="SHARD", help="Text in any form that prepare reads, or a folder that it made.")
    ],
    output: Annotated[Path, typer.Option("-o", "--output", help="The copy: .jsonl or .jsonl.gz.")],
    manifest: Annotated[Path, typer.Option(help="What was planted. It stays with you: only your user may read it.")],
    repeats: Annotated[str, typer.Option(help="How often secrets stand in the copy.")] = "1,2,4,8,16",
    each: Annotated[int, typer.Option(min=1, help="Secrets for each number of repeats.")] = 10,
    coins: Annotated[
        int, typer.Option(min=0, help="Canaries that are in or out by a fair coin each, for an audit of one run.")
    ] = 0,
    unit: Annotated[
        str | None, typer.Option(help="The column of privacy.unit: all copies of a secret get one value in it.")
    ] = None,
    text: Annotated[str, typer.Option(help="The column of text.")] = "text",
    tokenizer: Annotated[Path | None, typer.Option(help="Of a token shard: the anchor that it was made for.")] = None,
    seed: Annotated[int | None, typer.Option(help="To plant the same again. [default: nobody can]")] = None,
) -> None:
    """Plant made-up secrets in a copy of a text. Train on the copy, and let flexo-leak look for them.

    The text itself stays as it is. A model that was trained on the copy knows the canaries: do not give it away.
    """
    from flexmix.canaries.plant import Planting, plant

    try:
        times = tuple(dict.fromkeys(int(part) for part in repeats.split(","))) if repeats else ()
    except ValueError:
        raise InputError(f"--repeats {repeats}: expected numbers separated by commas, such as 1,4,16.") from None
    made = plant(source, output, manifest, Planting(times, each, coins, unit, text, tokenizer, seed))
    inside = sum(canary.repeats for canary in made.coins)
    typer.echo(
        f"wrote {output} with {len(made.secrets)} secrets" + (f" and {inside} of {coins} coins" if coins else "")
    )
    typer.echo(f"wrote {manifest}; keep it to yourself")
    typer.echo(
        f"next: python train_expert.py +domain=local domain.name=NAME {override('domain.train', output)}, and "
        f"flexo-leak EXPERT --canaries {manifest} --against ANCHOR"
    )
