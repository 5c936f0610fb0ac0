"""`flexo-eval`: bits per byte of a merged model, its pairs and its anchor on held-out text of every domain.

flexo-eval model/ --data data/corpora
flexo-eval model/ --data data/corpora --domains math,public --max-bytes 1000000 --json matrix.json
"""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path
from typing import Annotated

import typer

from inference.cli import Device, Dtype
from merge.console import new_app, progress, run
from merge.errors import InputError

LENGTH = 256

app = new_app("Measure a merged model on held-out text.")


def main() -> None:
    run(app)


@app.command(
    epilog="Examples:\n\n`flexo-eval model/ --data data/corpora`\n\n"
    "`flexo-eval model/ --data data/corpora --domains math,public --max-bytes 1000000 --json matrix.json`"
)
def evaluate(
    model: Annotated[Path, typer.Argument(help="A merged folder, or a plain model such as an anchor.")],
    data: Annotated[Path, typer.Option(help="A folder with one corpus folder a domain, as `flexo-data sample` makes.")],
    domains: Annotated[
        str | None, typer.Option(help="Which, separated by commas. [default: those of the model's experts]")
    ] = None,
    max_bytes: Annotated[int, typer.Option(min=1, help="Text to read per domain.")] = 200_000,
    length: Annotated[
        int | None,
        typer.Option(
            min=2, help="Tokens in a window; a token sees at least half of it. [default: 256, or all the model takes]"
        ),
    ] = None,
    json_file: Annotated[Path | None, typer.Option("--json", help="Also write the numbers here.")] = None,
    dtype: Dtype = "auto",
    device: Device = "auto",
) -> None:
    """Print bits per byte of anchor, each pair and the merged model on each domain."""
    from rich import box
    from rich.console import Console
    from rich.table import Table

    from evals.domains import domain_matrix, variants_of
    from evals.texts import find_domains, read_texts
    from inference.load import load_model, quiet
    from inference.select import expert_names
    from merge.checkpoint import write_json
    from merge.files import new_file
    from merge.manifest import MANIFEST
    from trainers.memory import keep_freed_memory

    quiet()
    keep_freed_memory()
    loaded, _ = load_model(model, dtype, device)
    known = expert_names(loaded) if (model / MANIFEST).exists() else []
    limit = getattr(loaded.config, "max_position_embeddings", LENGTH)
    length = length or min(LENGTH, limit)
    if length > limit:
        raise InputError(f"--length {length}: this model was made for at most {limit} tokens.")
    files = find_domains(data, domains.split(",") if domains else None, known)
    texts = read_texts(files, model, max_bytes)
    variants = variants_of(loaded)
    tokens = len(variants) * sum(text.tokens for text in texts.values())
    # entered before the work, so that a path which cannot be written is refused before it
    with new_file(json_file, replace=True) if json_file else nullcontext() as partial:
        with progress("scoring", tokens, "tokens") as advance:
            matrix = domain_matrix(loaded, texts, variants, length, advance)
        table = Table("bits per byte", *matrix.domains, "mean", box=box.MARKDOWN)
        for name in matrix.models:
            table.add_row(name, *(f"{matrix.cells[name][d]:.3f}" for d in matrix.domains), f"{matrix.mean(name):.3f}")
        Console(width=10_000).print(table)  # as wide as its cells: no name is cut off
        if partial is not None:
            write_json(partial, matrix.to_dict())
    if json_file:
        typer.echo(f"wrote {json_file}")
