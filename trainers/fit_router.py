"""`flexo-fit-router`: the router of a merged model, fitted to what its owners measured of their text.

flexo-embed data/corpora/math --anchor anchor -o math.safetensors      # each owner, beside the expert file
flexo-fit-router model/ math.safetensors news.safetensors --anchor anchor -o model2/
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from merge.console import new_app, progress, run
from merge.errors import InputError

if TYPE_CHECKING:
    from flexmix.domain import Moments
    from flexmix.embedding import Embedding
    from merge.anchor import Anchor
    from merge.merged import Merged

SAMPLES = 4096  # of each domain and layer, at least; and four times the width

app = new_app("Fit the router of a merged model to embeddings of its domains.")


def main() -> None:
    run(app)


@app.command(
    epilog="Examples:\n\n`flexo-embed data/corpora/math --anchor anchor -o math.safetensors`, at each owner's, then\n\n"
    "`flexo-fit-router model/ embeddings/*.safetensors --anchor anchor -o model2/`"
)
def fit(
    model: Annotated[Path, typer.Argument(help="A folder made by flexo-merge.")],
    embeddings: Annotated[
        list[Path], typer.Argument(help="One file of flexo-embed for each of its experts, with second moments.")
    ],
    anchor: Annotated[Path, typer.Option(help="The anchor folder, for the moments of public text.")],
    output: Annotated[Path, typer.Option("-o", "--output", help="The folder to make; it must not hold anything yet.")],
) -> None:
    """Write the model again with other router rows: no text is read, no expert is touched.

    Embeddings tell something about the text that they were made of (docs/domains.md); who sends none keeps to the rows
    of the merge.
    """
    from merge.anchor import open_anchor
    from merge.files import refuse_occupied
    from merge.merged import open_merged, write_rows

    refuse_occupied(output)
    merged, opened = open_merged(model), open_anchor(anchor)
    layers = layer_moments(merged, opened, embeddings)
    rows = fitted(layers)
    width = merged.architecture.hidden_size
    about: dict[str, Any] = {
        "kind": "moments", "domains": merged.domains, "samples": samples_for(width), "private_text": False,
    }  # fmt: skip
    how = f"{merged.manifest.get('how', 'merged')}; router fitted to moments"
    with progress("writing", merged.checkpoint.nbytes) as advance:
        write_rows(merged, rows, output, merged.manifest | {"how": how, "router_training": about}, advance)
    typer.echo(f"wrote {output}/  {len(rows)} routers of {len(merged.domains)} rows; every other tensor is as it was")


def layer_moments(merged: Merged, anchor: Anchor, paths: Sequence[Path]) -> list[dict[str, Moments]]:
    """Per layer, the moments of every expert's domain, `public` first.

    Raises:
        InputError: a file is missing, of another anchor, without second moments or of a domain that the model lacks.
    """
    from flexmix.domain import Moments
    from trainers.routing import MEAN, SECOND

    stated = merged.manifest["anchor"]["digest"]
    if anchor.digest != stated:
        raise InputError(
            f"{anchor.folder}: its digest is {anchor.digest[:12]}, the model was merged on {stated[:12]}. Give the "
            "anchor that the experts were trained with."
        )
    stored = anchor.moments()
    if stored is None:
        raise InputError(f"{anchor.folder}: ships no moments of public text. Make them with train_anchor.py.")
    owners = _by_domain(merged, anchor, paths)
    layers = []
    for n in range(merged.architecture.num_hidden_layers):
        domains = {"public": Moments.of(stored[MEAN.format(n=n)], stored[SECOND.format(n=n)])}
        for name, owner in owners.items():
            assert owner.second_LDD is not None, "checked where the files were opened"
            domains[name] = Moments.of(owner.mean_LD[n], owner.second_LDD[n])
        layers.append(domains)
    return layers


def fitted(layers: Sequence[dict[str, Moments]]) -> dict[int, Any]:
    """Layer -> its router [E, D]; see `trainers.composed`."""
    from trainers.composed import composed_rows

    rows = {}
    with progress("fitting routers", len(layers), "layers") as advance:
        for n, domains in enumerate(layers):
            rows[n] = composed_rows(domains, samples=samples_for(len(domains["public"].mean)))
            advance(1)
    return rows


def samples_for(width: int) -> int:
    return max(SAMPLES, 4 * width)


def _by_domain(merged: Merged, anchor: Anchor, paths: Sequence[Path]) -> dict[str, Embedding]:
    """The embeddings in the order of the experts, one for each."""
    from flexmix.embedding import read_embedding

    found: dict[str, Embedding] = {}
    sizes = merged.architecture.num_hidden_layers, merged.architecture.hidden_size
    for path in paths:
        embedding = read_embedding(path)
        if embedding.domain not in merged.domains[1:]:
            raise InputError(
                f"{path}: of the domain {embedding.domain!r}, and {merged.folder} has {', '.join(merged.domains[1:])}."
            )
        if embedding.domain in found:
            raise InputError(f"{path}: a second embedding of {embedding.domain}. Give one for each expert.")
        if embedding.kind != "router_input" or embedding.model != anchor.digest:
            raise InputError(
                f"{path}: measured with {embedding.model[:12]} ({embedding.kind}), expected the router input of "
                f"{anchor.folder} ({anchor.digest[:12]}). Make it with flexo-embed TEXT --anchor {anchor.folder}."
            )
        if embedding.second_LDD is None:
            raise InputError(f"{path}: holds means only. Make it without --means-only.")
        if tuple(embedding.mean_LD.shape) != sizes:
            raise InputError(f"{path}: {tuple(embedding.mean_LD.shape)} layers and width, expected {sizes}.")
        squares_L = embedding.second_LDD.diagonal(dim1=1, dim2=2).sum(-1)
        if (embedding.mean_LD.pow(2).sum(-1) > squares_L * 1.001).any():
            raise InputError(
                f"{path}: means longer than its second moments allow: of no text. Ask its owner for another."
            )
        found[embedding.domain] = embedding
    if missing := [name for name in merged.domains[1:] if name not in found]:
        raise InputError(
            f"no embedding of {', '.join(missing)}: the rows of all experts are fitted together, so each needs one. "
            "Leave such an expert out with flexo-optout, or keep the rows of the merge."
        )
    return {name: found[name] for name in merged.domains[1:]}


if __name__ == "__main__":
    main()
