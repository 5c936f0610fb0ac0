"""The commands of `flexo-data` about domains: how alike they are, what an expert may gain, which public text is near.

flexo-data cosines math.safetensors code.safetensors --centre public.safetensors
flexo-data gain data/corpora/math --anchor anchor
flexo-data proxies own.jsonl.gz --public data/corpora/public -o proxies.jsonl.gz
"""

from __future__ import annotations

import json
from contextlib import nullcontext
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from flexmix.domains.proxy_selection import Report

COSINES_EXAMPLES = (
    "Examples:\n\n`flexo-data cosines math.safetensors code.safetensors news.safetensors`\n\n"
    "`flexo-data cosines math.safetensors code.safetensors --centre public.safetensors --layers --json cosines.json`"
)
GAIN_EXAMPLES = (
    "Examples:\n\n`flexo-data gain data/corpora/math --anchor anchor`\n\n"
    "`flexo-data gain own.jsonl.gz --held-out held.jsonl.gz --anchor anchor --public data/corpora/public "
    "--json gain.json`"
)
PROXIES_EXAMPLES = (
    "Examples:\n\n`flexo-data proxies shard.jsonl.gz --public data/corpora/public -o proxies.jsonl.gz`\n\n"
    "`flexo-data proxies data/corpora/math --public anchor/flexo/public --count 500 -o proxies.jsonl.gz "
    "--json report.json`"
)


def cosines(
    files: Annotated[list[Path], typer.Argument(help="Files of flexo-embed, two or more.")],
    centre: Annotated[
        Path | None, typer.Option(help="Subtract this file's means first, usually those of public text.")
    ] = None,
    layers: Annotated[bool, typer.Option("--layers", help="Also print every layer by itself.")] = False,
    json_file: Annotated[Path | None, typer.Option("--json", help="Also write the numbers here.")] = None,
) -> None:
    """Print how alike domains are: cosines between their mean states, the mean over layers and per layer.

    Hidden states of any text share a large part, so raw cosines are all close to 1; --centre takes that part out.
    """
    from rich import box
    from rich.console import Console
    from rich.table import Table

    from flexmix.domains.embedding import compare
    from flexo.atomic_files import new_file

    found = compare(files, centre)
    console = Console(width=10_000)  # as wide as its cells: no name is cut off
    shown = {"mean over layers": found.mean_NN}
    if layers:
        shown |= {f"layer {n}": cosine_NN for n, cosine_NN in enumerate(found.layers_LNN)}
    for title, cosine_NN in shown.items():
        table = Table(title, *found.domains, box=box.MARKDOWN)
        for name, row in zip(found.domains, cosine_NN.tolist(), strict=True):
            table.add_row(name, *(f"{value:.3f}" for value in row))
        console.print(table)
    if json_file:
        kept = {"domains": found.domains, "mean": found.mean_NN.tolist(), "layers": found.layers_LNN.tolist()}
        with new_file(json_file, replace=True) as partial:
            partial.write_text(json.dumps(kept, indent=1) + "\n")
        typer.echo(f"wrote {json_file}")


def gain(
    own: Annotated[Path, typer.Argument(help="Private text: a .jsonl or .jsonl.gz file, or a folder with `train`.")],
    anchor: Annotated[Path, typer.Option(help="The anchor folder; its tokenizer is used, no model is run.")],
    held_out: Annotated[
        Path | None,
        typer.Option(help="Other documents of the domain. [default: `test` of the folder, or one document in twenty]"),
    ] = None,
    public: Annotated[
        Path | None, typer.Option(help="Public text, a file or a folder with `train`. [default: the anchor's]")
    ] = None,
    tokens: Annotated[
        int, typer.Option(min=1000, help="Tokens that the expert will be trained on; as many are read.")
    ] = 200_000,
    json_file: Annotated[Path | None, typer.Option("--json", help="Also write the numbers here.")] = None,
) -> None:
    """Forecast what an expert on private text gains, before it is trained; runs where the private text is.

    It compares private with public text and reads the gain off a line through experts that were trained. The interval
    is wide: docs/credit.md says what the forecast is worth.
    """
    from dataclasses import asdict

    from flexmix.domains.expected_gain import COVERED, KNOWN, expected_gain, forecast, left_out_errors
    from flexo.atomic_files import new_file

    with new_file(json_file, replace=True) if json_file else nullcontext() as partial:
        found = forecast(own, anchor, held_out, public, tokens)
        expected = expected_gain(found.share)
        errors, by_mean = ([abs(error) for error in left_out_errors(degree=degree)] for degree in (1, 0))
        if partial is not None:
            kept = asdict(found) | {"divergence": found.share, "gain": asdict(expected), "covered": COVERED}
            partial.write_text(json.dumps(kept, indent=1) + "\n")
    typer.echo(
        f"divergence from public text: {found.share:.1%} (held-out text takes {found.before:.3f} bits per byte under a "
        f"bigram model of {found.public_tokens:,} public tokens, {found.after:.3f} with one of {found.own_tokens:,} "
        "own tokens, too)\n"
        f"expected gain of an expert: {expected.expected:.0%} fewer bits per byte on such text, {COVERED:.0%} interval "
        f"{expected.low:.0%} to {expected.high:.0%}\n"
        f"known from {len(KNOWN)} experts of {len({one.run for one in KNOWN})} runs. Forecast from the other "
        f"domains, their gains were missed by {100 * fmean(errors):.1f} points in the mean and {100 * max(errors):.1f} "
        f"at most; the mean gain of those domains, without a look at the text, misses by {100 * fmean(by_mean):.1f}."
    )
    far = [one.divergence for one in KNOWN]
    if not min(far) <= found.share <= max(far):
        typer.echo(f"note: a guess, for the texts of known experts diverge by {min(far):.1%} to {max(far):.1%}.")
    if json_file:
        typer.echo(f"wrote {json_file}")


def proxies(
    own: Annotated[Path, typer.Argument(help="Private text: a file, or a folder with `train`.")],
    public: Annotated[Path, typer.Option(help="Public text to choose from, likewise.")],
    output: Annotated[Path, typer.Option("-o", "--output", help="The file to make, .jsonl.gz.")],
    share: Annotated[
        float | None, typer.Option(min=0.0, max=1.0, help="Of the public documents to choose. [default: 0.05]")
    ] = None,
    count: Annotated[int | None, typer.Option(min=1, help="How many to choose, in place of --share.")] = None,
    seed: Annotated[int, typer.Option(help="Of the order in which the classifier reads.")] = 0,
    json_file: Annotated[Path | None, typer.Option("--json", help="Also write the report here.")] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the file if it exists.")] = False,
) -> None:
    """Choose the public documents that look most like private text; runs where the private text is.

    The file holds public documents and scores. Which documents it holds follows from the private text, so it tells
    what that is about, and perhaps more; the report says how much the choice changes with the private documents. That
    is measured, not guaranteed: read it before the file leaves. Needs the extra `proxies` (scikit-learn).
    """
    from flexmix.domains.proxy_selection import choose_proxies
    from flexo.atomic_files import new_file

    # entered before the work, so that a path which cannot be written is refused before it
    with new_file(json_file, replace=True) if json_file else nullcontext() as partial:
        report = choose_proxies(own, public, output, share=share, count=count, seed=seed, replace=overwrite)
        if partial is not None:
            partial.write_text(json.dumps(report.to_dict(), indent=1) + "\n")
    _say(report, output)
    if json_file:
        typer.echo(f"wrote {json_file}")


def _say(report: Report, output: Path) -> None:
    """What was chosen, and what the choice tells, in words."""
    from flexmix.domains.proxy_selection import LEFT_OUT

    mean, most = report.one_left_out
    lines = [
        f"wrote {output}: {report.chosen:,} of {report.public_documents:,} public documents, scores from "
        f"{report.lowest_score:.3f} up. No private text is in it.",
        f"own and public documents are told apart, held out: accuracy {report.accuracy:.3f} (0.5 is chance), "
        f"AUC {report.auc:.3f}",
        "what the choice tells about the private text, beyond its subject:",
        f"  chosen from one half of it and from the other alike: {report.halves_overlap:.0%} of the documents "
        f"(blind choices: {report.chance_overlap:.0%})",
        f"  one private document left out: {mean:.1f} of {report.chosen:,} change in the mean, {most} at most, in "
        f"{LEFT_OUT} trials; another reading order alone changes {report.reordered}",
        f"  the choice and its scores can carry {report.bits_at_most:,.0f} bits at most. None of this is a guarantee.",
    ]
    typer.echo("\n".join(lines))
