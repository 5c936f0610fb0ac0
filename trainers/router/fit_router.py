"""The router of a merged model, fitted to what its owners measured of their text: `flexo-fit-router` as a function."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from flexmix.domains.embedding import Embedding, read_embedding
from flexmix.domains.moments import Moments
from flexo.atomic_files import refuse_occupied
from flexo.console import progress
from flexo.errors import InputError
from merge.formats.anchor_folder import Anchor, open_anchor
from merge.formats.merged_folder import Merged, open_merged
from merge.planning.router_rows import write_rows
from trainers.router.moment_fit import composed_rows
from trainers.router.row_init import check_merged_on, public_moments

SAMPLES = 4096  # of each domain and layer, at least; and four times the width


def fit_router(
    model: Path, embeddings: Sequence[Path], anchor: Path, output: Path, public_weight: float | None = None
) -> dict[int, torch.Tensor]:
    """Writes a merged model again with router rows fitted to embeddings; returns the router [E, D] of each layer.

    Args:
        model: a folder made by `flexo-merge`.
        embeddings: a file of `flexo-embed` for each of its experts, with second moments: all of the anchor, or all of
            this model, and then one of public text, too.
        anchor: the anchor folder, for the moments of public text.
        output: the folder to make.
        public_weight: how many domains public text counts for; None: as many as there are owners (docs/log.md).

    Raises:
        InputError: the output is not free, or a file is missing or does not belong to the others.
    """
    refuse_occupied(output)
    merged, opened = open_merged(model), open_anchor(anchor)
    inside, layers = _layer_moments(merged, opened, embeddings)
    weight = len(merged.domains) - 1.0 if public_weight is None else public_weight
    rows = _fitted(layers, weight)
    width = merged.architecture.hidden_size
    about: dict[str, Any] = {
        "kind": "moments", "measured_in": "model" if inside else "anchor", "domains": merged.domains,
        "samples": samples_for(width), "public_weight": weight, "private_text": False,
    }  # fmt: skip
    how = f"{merged.manifest.get('how', 'merged')}; router fitted to moments"
    with progress("writing", merged.weights.nbytes) as advance:
        write_rows(merged, rows, output, merged.manifest | {"how": how, "router_training": about}, advance)
    return rows


def _layer_moments(merged: Merged, anchor: Anchor, paths: Sequence[Path]) -> tuple[bool, list[dict[str, Moments]]]:
    """Whether states of the merged model were measured, not the anchor's; and per layer the moments, `public` first.

    Raises:
        InputError: a file is missing, of another model, without second moments or of a domain that the model lacks.
    """
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


def _fitted(layers: Sequence[dict[str, Moments]], public_weight: float) -> dict[int, torch.Tensor]:
    """Layer -> its router [E, D]; see `trainers.router.moment_fit`."""
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
                f"{path}: an embedding of {embedding.domain!r}, which {merged.folder} has no expert for. It has "
                f"{', '.join(wanted)}."
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
            raise InputError(
                f"{path}: holds means only, and a fit needs second moments, too. Make it without --means-only."
            )
        if tuple(embedding.mean_LD.shape) != sizes:
            raise InputError(f"{path}: {tuple(embedding.mean_LD.shape)} layers and width, expected {sizes}.")
        squares_L = embedding.second_LDD.diagonal(dim1=1, dim2=2).sum(-1)
        if (embedding.mean_LD.pow(2).sum(-1) > squares_L * 1.001).any():
            raise InputError(
                f"{path}: its means are longer than its second moments allow, which no text gives. Ask its owner for "
                "another."
            )
        found[embedding.domain] = embedding
    if missing := [name for name in wanted if name not in found]:
        raise InputError(
            f"no embedding of {', '.join(missing)}: the rows of all experts are fitted together, so each needs one. "
            "Leave such an expert out with flexo-optout, or keep the rows of the merge."
        )
    return {name: found[name] for name in wanted}
