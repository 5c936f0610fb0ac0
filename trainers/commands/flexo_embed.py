"""`flexo-embed`: the embedding of a domain, as its anchor or a text encoder sees it, in a small file for its owner.

flexo-embed data/corpora/math --anchor anchor -o math.safetensors
flexo-embed shard.jsonl.gz --anchor anchor --domain pubmed --means-only -o pubmed.safetensors
flexo-embed data/corpora/math --anchor anchor --model model2 -o round2/math.safetensors
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from flexo.console import new_app, progress, run
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
    anchor: Annotated[str, typer.Option(help="The anchor folder, or a hub id of one.")],
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
    from flexmix.documents.corpus import find_split
    from flexmix.documents.hub import local_folder
    from flexmix.domains.embedding import Embedding
    from merge.formats.anchor_folder import open_anchor
    from merge.formats.merged_folder import open_merged
    from trainers.hydra_entry import quiet

    quiet()
    if output.exists() and not overwrite:
        raise InputError(f"{output}: this file exists already. Choose another output, or pass --overwrite.")
    source = find_split(text, "train") if text.is_dir() else text
    name = domain or (text.resolve().name if text.is_dir() else text.name.partition(".")[0])
    folder = local_folder(anchor)
    opened = open_anchor(folder)
    if encoder and model is not None:
        raise InputError("--encoder with --model: a text encoder reads no merged model. Leave one of them out.")
    if encoder:
        from flexmix.documents.corpus import read_documents
        from flexmix.domains.text_encoder import encoder_name, text_moments

        width = opened.architecture.hidden_size
        with progress(f"embedding {name}", documents, "documents") as advance:
            moments = [text_moments(read_documents(source), width, seed, documents, advance)]
        made = Embedding.of(name, "text", encoder_name(seed), moments, means_only)
    else:
        import torch
        from transformers import AutoModelForCausalLM

        from flexmix.packing.loaders import EvalLoader
        from trainers.data import DataOptions, plain_windows
        from trainers.distributed import measuring_device
        from trainers.router.row_init import check_merged_on, router_input_moments

        data = DataOptions(tokens=1, length=length, batch_size=batch_size, moment_windows=windows, cache=cache)
        loader = EvalLoader(plain_windows(source, folder, data), batch_size, windows)
        digest = opened.digest
        if model is not None:
            merged = open_merged(model)
            check_merged_on(merged, opened)
            digest = merged.weights.digest()
        loaded = AutoModelForCausalLM.from_pretrained(model or folder, dtype=torch.float32)
        with progress(f"measuring {name}", len(loader) * data.tokens_per_step, "tokens") as advance:
            moments = router_input_moments(loaded, loader, advance, measuring_device("auto"))
        made = Embedding.of(name, "router_input", digest, moments, means_only)
    made.write(output, replace=overwrite)
    what = "positions" if made.kind == "router_input" else "documents"
    typer.echo(f"wrote {output}: {made.domain}, {made.vectors:,} {what}, {output.stat().st_size / 1e6:.2f} MB")


if __name__ == "__main__":
    main()
