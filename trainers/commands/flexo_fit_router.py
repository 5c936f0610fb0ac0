"""`flexo-fit-router`: the router of a merged model, fitted to what its owners measured of their text.

flexo-embed data/corpora/math --anchor anchor -o math.safetensors      # each owner, beside the expert file
flexo-fit-router model/ math.safetensors news.safetensors --anchor anchor -o model2/

Another round, measured in what the first one made, public text included:

flexo-embed data/corpora/math --anchor anchor --model model2 -o round2/math.safetensors
flexo-embed anchor/flexo/public --anchor anchor --model model2 --domain public -o round2/public.safetensors
flexo-fit-router model2/ round2/*.safetensors --anchor anchor -o model3/
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from flexo.console import new_app, progress, run
from flexo.errors import InputError

if TYPE_CHECKING:
    from flexmix.domains.embedding import Embedding
    from flexmix.domains.moments import Moments
    from merge.formats.anchor_folder import Anchor
    from merge.formats.merged_folder import Merged

SAMPLES = 4096  # of each domain and layer, at least; and four times the width

app = new_app("Fit the router of a merged model to embeddings of its domains.")


def main() -> None:
    run(app)


@app.command(
    epilog="Examples:\n\n`flexo-embed data/corpora/math --anchor anchor -o math.safetensors`, at each owner's, then\n\n"
    "`flexo-fit-router model/ embeddings/*.safetensors --anchor anchor -o model2/`\n\n"
    "Another round, with files of `flexo-embed --model model2` for public text and every domain:\n\n"
    "`flexo-fit-router model2/ round2/*.safetensors --anchor anchor -o model3/`"
)
def fit(
    model: Annotated[Path, typer.Argument(help="A folder made by flexo-merge.")],
    embeddings: Annotated[
        list[Path],
        typer.Argument(
            help="One file of flexo-embed for each of its experts, with second moments; all of the anchor, or all of "
            "this model, and then one of public text, too."
        ),
    ],
    anchor: Annotated[Path, typer.Option(help="The anchor folder, for the moments of public text.")],
    output: Annotated[Path, typer.Option("-o", "--output", help="The folder to make; it must not hold anything yet.")],
    public_weight: Annotated[
        float | None,
        typer.Option(
            min=0.001,
            max=1000,
            help="How many domains public text counts for. [default: as many as there are owners]",
        ),
    ] = None,
) -> None:
    """Write the model again with other router rows: no text is read, no expert is touched.

    Embeddings tell something about the text that they were made of (docs/domains.md); who sends none keeps to the rows
    of the merge.
    """
    from flexo.atomic_files import refuse_occupied
    from merge.formats.anchor_folder import open_anchor
    from merge.formats.merged_folder import open_merged
    from merge.planning.router_rows import write_rows

    refuse_occupied(output)
    merged, opened = open_merged(model), open_anchor(anchor)
    inside, layers = layer_moments(merged, opened, embeddings)
    measured_in = "model" if inside else "anchor"
    weight = len(merged.domains) - 1.0 if public_weight is None else public_weight  # docs/log.md
    rows = fitted(layers, weight)
    width = merged.architecture.hidden_size
    about: dict[str, Any] = {
        "kind": "moments", "measured_in": measured_in, "domains": merged.domains, "samples": samples_for(width),
        "public_weight": weight, "private_text": False,
    }  # fmt: skip
    how = f"{merged.manifest.get('how', 'merged')}; router fitted to moments"
    with progress("writing", merged.weights.nbytes) as advance:
        write_rows(merged, rows, output, merged.manifest | {"how": how, "router_training": about}, advance)
    typer.echo(f"wrote {output}/  {len(rows)} routers of {len(merged.domains)} rows; every other tensor is as it was")


def layer_moments(merged: Merged, anchor: Anchor, paths: Sequence[Path]) -> tuple[bool, list[dict[str, Moments]]]:
    """Whether states of the merged model were measured, not the anchor's; and per layer the moments, `public` first.

    Raises:
        InputError: a file is missing, of another model, without second moments or of a domain that the model lacks.
    """
    from flexmix.domains.embedding import read_embedding
    from flexmix.domains.moments import Moments
    from trainers.router.row_init import check_merged_on, public_moments

    check_merged_on(merged, anchor)
    read = [(path, read_embedding(path)) for path in paths]
    inside = any(embedding.domain == "public" for _, embedding in read)
    measured_in = merged.weights.digest() if inside else anchor.digest
    found = _by_domain(merged, anchor, read, merged.domains if inside else merged.domains[1:], measured_in)
    numbers = range(merged.architecture.num_hidden_layers)
    measured: dict[str, list[Moments]] = {}
    if not inside:
        measured["public"] = [public_moments(anchor, n, "a fit to moments of the anchor") for n in numbers]
    for name, owner in found.items():
        assert owner.second_LDD is not None, "checked where the files were opened"
        measured[name] = [Moments.of(owner.mean_LD[n], owner.second_LDD[n]) for n in numbers]
    return inside, [{name: moments[n] for name, moments in measured.items()} for n in numbers]


def fitted(layers: Sequence[dict[str, Moments]], public_weight: float) -> dict[int, Any]:
    """Layer -> its router [E, D]; see `trainers.router.moment_fit`."""
    from trainers.router.moment_fit import composed_rows

    rows = {}
    with progress("fitting routers", len(layers), "layers") as advance:
        for n, domains in enumerate(layers):
            rows[n] = composed_rows(
                domains, samples=samples_for(len(domains["public"].mean)), public_weight=public_weight
            )
            advance(1)
    return rows


def samples_for(width: int) -> int:
    return max(SAMPLES, 4 * width)


def _by_domain(
    merged: Merged, anchor: Anchor, read: Sequence[tuple[Path, Embedding]], wanted: Sequence[str], measured_in: str
) -> dict[str, Embedding]:
    """The embeddings in the order of the domains that are wanted, one for each, all measured in one model."""
    found: dict[str, Embedding] = {}
    sizes = merged.architecture.num_hidden_layers, merged.architecture.hidden_size
    if measured_in == anchor.digest:
        place, how = f"the router input of {anchor.folder}", f"flexo-embed TEXT --anchor {anchor.folder}"
    else:
        place = f"the router input of {merged.folder}, as an embedding of public text says,"
        how = f"flexo-embed TEXT --anchor {anchor.folder} --model {merged.folder}"
    for path, embedding in read:
        if embedding.domain not in wanted:
            raise InputError(
                f"{path}: of the domain {embedding.domain!r}, and {merged.folder} has {', '.join(wanted)}."
            )
        if embedding.domain in found:
            raise InputError(f"{path}: a second embedding of {embedding.domain}. Give one for each expert.")
        if embedding.kind != "router_input" or embedding.model != measured_in:
            raise InputError(
                f"{path}: measured with {embedding.model[:12]} ({embedding.kind}), expected {place} "
                f"({measured_in[:12]}). Make it with {how}. After a first round, measure "
                "all in the merged model, public text, too."
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
    if missing := [name for name in wanted if name not in found]:
        raise InputError(
            f"no embedding of {', '.join(missing)}: the rows of all experts are fitted together, so each needs one. "
            "Leave such an expert out with flexo-optout, or keep the rows of the merge."
        )
    return {name: found[name] for name in wanted}


if __name__ == "__main__":
    main()
