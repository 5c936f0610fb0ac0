"""`flexo-embed`: the embedding of a domain, as its anchor or a text encoder sees it, in a small file for its owner.

flexo-embed data/corpora/math --anchor anchor -o math.safetensors
flexo-embed shard.jsonl.gz --anchor anchor --domain pubmed --means-only -o pubmed.safetensors
flexo-embed data/corpora/math --anchor anchor --model model2 -o round2/math.safetensors
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from flexo.console import new_app, run
from flexo.errors import InputError

app = new_app("Measure the embedding of a domain.")


def main() -> None:
    run(app)


@app.command(
    epilog="Examples:\n\n`flexo-embed data/corpora/math --anchor anchor -o math.safetensors`\n\n"
    "`flexo-embed shard.jsonl.gz --anchor anchor --domain pubmed --means-only -o pubmed.safetensors`\n\n"
    "Then: `flexo-data cosines math.safetensors pubmed.safetensors`"
)
def embed(
    text: Annotated[Path, typer.Argument(help="A .jsonl or .jsonl.gz file, or a folder with a `train` one in it.")],
    anchor: Annotated[str, typer.Option(help="The anchor folder, or `hf://OWNER/NAME` of one on the hub.")],
    output: Annotated[Path, typer.Option("-o", "--output", help="The file to make, .safetensors.")],
    domain: Annotated[str | None, typer.Option(help="Its name. [default: that of the folder or file]")] = None,
    model: Annotated[
        Path | None,
        typer.Option(help="A merged folder to measure in, for flexo-fit-router once more. [default: the anchor]"),
    ] = None,
    means_only: Annotated[
        bool, typer.Option("--means-only", help="Leave second moments out: a smaller file that tells less.")
    ] = False,
    windows: Annotated[int, typer.Option(min=1, help="Windows to read, spread over the text.")] = 512,
    length: Annotated[int, typer.Option(min=2, help="Tokens in a window.")] = 256,
    batch_size: Annotated[int, typer.Option(min=1, help="Windows read at once.")] = 8,
    cache: Annotated[Path, typer.Option(help="Where token shards are kept, as data.cache in training.")] = Path(
        "data/tokens"
    ),
    encoder: Annotated[
        bool, typer.Option("--encoder", help="Embed documents with a text encoder instead (extra `encoder`).")
    ] = False,
    documents: Annotated[int, typer.Option(min=1, help="With --encoder: documents to read.")] = 1000,
    seed: Annotated[int, typer.Option(help="With --encoder: of its projection to the anchor's width.")] = 0,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the file if it exists.")] = False,
) -> None:
    """Write the mean state of a domain's text in every layer of the anchor or of a merged model, with second moments.

    The file is for the owner: it tells about the text, second moments more than means. Nothing sends it anywhere.
    """
    from flexmix.documents.hub import local_folder
    from trainers.data import DataOptions
    from trainers.entry.hydra_entry import quiet
    from trainers.router.domain_embedding import encoded_embedding, measured_embedding

    quiet()
    if output.exists() and not overwrite:
        raise InputError(f"{output}: this file exists already. Choose another output, or pass --overwrite.")
    if encoder and model is not None:
        raise InputError("--encoder with --model: a text encoder reads no merged model. Leave one of them out.")
    folder = local_folder(anchor)
    if encoder:
        made = encoded_embedding(text, folder, domain=domain, documents=documents, seed=seed, means_only=means_only)
    else:
        data = DataOptions(tokens=1, length=length, batch_size=batch_size, moment_windows=windows, cache=cache)
        made = measured_embedding(text, folder, data, domain=domain, model=model, means_only=means_only)
    made.write(output, replace=overwrite)
    what = "documents" if encoder else "positions"
    typer.echo(f"wrote {output}: {made.domain}, {made.vectors:,} {what}, {output.stat().st_size / 1e6:.2f} MB")


if __name__ == "__main__":
    main()
