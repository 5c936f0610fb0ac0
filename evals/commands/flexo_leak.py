"""`flexo-leak`: what can be got out of an expert file or a model: which documents were trained on, and their text.

flexo-leak expert.pt --source prepared --against anchor/
flexo-leak expert.pt --canaries canaries.json --against anchor/ --json leak.json
"""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path
from typing import Annotated

import typer

from flexo.console import comma_list, new_app, run
from flexo.errors import InputError, UsageError
from inference.commands.options import Device, Dtype

app = new_app("Measure what can be got out of a model.")


def main() -> None:
    run(app)


@app.command(
    epilog="Examples:\n\n`flexo-leak expert.pt --source prepared --against anchor/`\n\n"
    "`flexo-leak expert.pt --members train.jsonl --non-members test.jsonl --canaries canaries.json --against anchor/ "
    "--cache cells --json leak.json`, and `flexo-report --leak leak.json -o report.html`\n\n"
    "`flexo-leak model/ --canaries canaries.json --parts canaries --delta 1e-6`\n\n"
    "`flexo-leak model/ --source prepared --never never/ --parts leaving`\n\n"
    "`flexo-leak model/ --domains corpora/ --parts access,attribution`"
)
def leak(
    model: Annotated[str, typer.Argument(metavar="[NAME=]MODEL", help="An expert file, or a model's folder.")],
    source: Annotated[
        Path | None,
        typer.Option(help="A folder with train and test in it, as flexo-data prepare makes it: it splits by hash."),
    ] = None,
    members: Annotated[Path | None, typer.Option(help="Instead of it: documents that were trained on,")] = None,
    non_members: Annotated[Path | None, typer.Option(help="and documents of the same source that were not.")] = None,
    canaries: Annotated[
        Path | None, typer.Option(help="The manifest of flexo-data canaries, if the model was trained on such a copy.")
    ] = None,
    against: Annotated[
        Path | None, typer.Option(help="The anchor. [default: the public expert of a merged folder]")
    ] = None,
    domains: Annotated[
        Path | None, typer.Option(help="A folder with one corpus folder a domain, as flexo-data sample makes it.")
    ] = None,
    max_bytes: Annotated[int, typer.Option(min=1, help="Text to read of each domain.")] = 100_000,
    never: Annotated[
        Path | None, typer.Option(help="A model that was merged without an expert, to compare with.")
    ] = None,
    embedding: Annotated[Path | None, typer.Option(help="What flexo-embed made of the owner's text.")] = None,
    proxies: Annotated[Path | None, typer.Option(help="The proxies of the owner's text.")] = None,
    parts: Annotated[str | None, typer.Option(help="Attacks, separated by commas. [default: all that can run]")] = None,
    documents: Annotated[int, typer.Option(min=20, help="Members to try, and non-members, at most.")] = 1000,
    others: Annotated[
        int, typer.Option(min=1, help="Secrets that could have been drawn, to rank each planted one among.")
    ] = 255,
    delta: Annotated[
        float | None,
        typer.Option(min=0, max=1, help="Of the guarantee that the audit tests. [default: the file's, or 1e-5]"),
    ] = None,
    cache: Annotated[
        Path | None, typer.Option(help="Keep what models say of a text here, so that they are not asked again.")
    ] = None,
    json_file: Annotated[Path | None, typer.Option("--json", help="Also write the figures here.")] = None,
    seed: Annotated[int, typer.Option(help="Of samples, and of all that is drawn.")] = 0,
    dtype: Dtype = "auto",
    device: Device = "auto",
) -> None:
    """Attack a model with its owner's text at hand, and print what could be got out of it.

    Figures mean something beside those of the anchor, which everybody has. The JSON holds figures and no text.
    """
    from evals.privacy.attacks.documents import Texts
    from evals.privacy.attacks.part import Extra, Settings
    from evals.privacy.leak import leak as attack
    from evals.report.leak import leak_text
    from flexo.atomic_files import new_file
    from flexo.cpu_threads import keep_freed_memory
    from inference.load import quiet
    from merge.tensor_io.json_file import write_json

    quiet()
    keep_freed_memory()
    if source is not None and (members or non_members):
        raise UsageError("--source holds members and non-members. Leave out --members and --non-members.")
    if source is not None:
        texts = Texts.of(source, canaries=canaries, documents=documents)
    else:
        texts = Texts(members, non_members, canaries, documents)
    wanted = None if parts is None else comma_list(parts, "--parts")
    with ExitStack() as stack:
        # entered before the work, so that a path which cannot be written is refused before it
        output = json_file and stack.enter_context(new_file(json_file, replace=True))
        settings = Settings(seed, cache, others, delta, dtype, device)
        extra = Extra(domains, max_bytes, never, embedding, proxies)
        found = attack(model, texts, against=against, parts=wanted, settings=settings, extra=extra)
        typer.echo(leak_text(found), nl=False)
        if output:
            write_json(output, found.to_dict())
    if json_file:
        typer.echo(f"wrote {json_file}")
    if found.refused:
        raise InputError("; ".join(found.refused.values()))
