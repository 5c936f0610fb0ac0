"""Dense models put together: their average (a soup), or their feed-forward networks as experts (Branch-Train-MiX).

    flexo-soup specialists/math specialists/code -o soup/ --weights 2,1
    flexo-btx specialists/math specialists/code --anchor anchor/ -o btx/

Both stream tensor by tensor, so memory is that of one tensor, whatever the models weigh. Averages are computed in
float32 and rounded once.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch

from flexo.atomic_files import new_folder, refuse_occupied
from flexo.console import Advance, Progress, no_progress
from flexo.errors import InputError, ModelFolderError
from merge.baselines.soup import Average, average
from merge.formats.anchor_folder import Anchor, open_anchor
from merge.formats.architecture import (
    FFN,
    anchor_ffn,
    merged_config,
    merged_ffn,
    merged_router,
    merged_tensors,
)
from merge.formats.expert_header import check_domain
from merge.formats.manifest import FORMAT, PUBLIC, anchor_entry, new_record
from merge.formats.merged_folder import finish, open_merged
from merge.formats.model_folder import ABOUT, ModelFolder, name_of
from merge.planning.merge_options import DEFAULT_TOP_K
from merge.tensor_io.json_file import read_json
from merge.tensor_io.shard_writer import MAX_SHARD_SIZE, write_tensors
from merge.tensor_io.stored_tensor import OutputTensor
from merge.tensor_io.torch_tensors import computed_tensor


@dataclass(frozen=True)
class MixtureOptions:
    """Settings of a mixture of dense models."""

    top_k: int | None = None  # active experts per token, public included; None takes all, at most 4
    rows: Path | None = None  # a merged folder of the same experts whose router rows to take; None draws them
    seed: int = 0  # of drawn rows


def write_mixture(
    anchor: Anchor,
    specialists: Average,
    names: Sequence[str],
    output: Path,
    options: MixtureOptions = MixtureOptions(),
    advance: Advance = lambda _amount: None,
) -> None:
    """Writes a FlexOlmo folder whose experts are the feed-forward networks of dense models (arXiv 2403.07816).

    The anchor's own network is expert 0, and the anchor counts in the average like each specialist. With the anchor
    itself in the place of every specialist this is sparse upcycling: the same function as the anchor's. Drawn router
    rows are normal with variance 1 / (D E[|x|^2]) on public text, so that logits are small.

    Args:
        anchor: what all specialists were trained from.
        specialists: the dense models, in the order of their experts; their weights are not used.
        names: domain of each.
        output: the folder to make, whole or not at all.
        options: settings.
        advance: told the bytes written.

    Raises:
        ModelFolderError: models, rows and names do not fit together.
    """
    arch, experts = anchor.architecture, len(names) + 1
    for name in names:
        check_domain(name, "specialists")
    if len(set(names)) != len(names):
        raise ModelFolderError(f"{', '.join(names)}: two specialists of one name. Rename a folder.")
    whole = average([anchor.folder, *(model.folder for model in specialists.models)])
    top_k = min(experts, DEFAULT_TOP_K) if options.top_k is None else options.top_k
    if not 1 <= top_k <= experts:
        raise ModelFolderError(f"--top-k {top_k}: this model has {experts} experts, public included.")
    if options.rows:
        routers, rows = _taken_rows(options.rows, ["public", *names], arch.to_dict()), f"of {name_of(options.rows)}"
    else:
        routers, rows = _drawn_rows(anchor, experts, options.seed), f"random, seed {options.seed}"
    entries: list[dict[str, Any]] = [{"index": 0} | PUBLIC]
    for e, (name, model) in enumerate(zip(names, specialists.models, strict=True), 1):
        entries.append({"index": e, "domain": name, "title": name, "licence": "other"} | _training_of(model))
    manifest = new_record(
        FORMAT,
        "dense specialists as experts, shared weights averaged (BTX)",
        top_k=top_k,
        anchor=anchor_entry(anchor, name_of(anchor.folder), anchor.digest),
        experts=entries,
        rows=rows,
    )
    with new_folder(output) as folder:
        write_tensors(folder, _tensors(anchor, whole, routers), MAX_SHARD_SIZE, advance)
        finish(folder, output, merged_config(anchor.weights.config, experts, top_k), anchor.folder, manifest)


def _tensors(anchor: Anchor, whole: Average, routers: list[torch.Tensor]) -> list[OutputTensor]:
    """The mixture's tensors: networks of the models as they are, the routers given, and averages of all else."""
    arch, experts = anchor.architecture, len(whole.models)
    rows = {merged_router(n): router for n, router in enumerate(routers)}
    networks = {
        merged_ffn(n, e, part): model.stored(anchor_ffn(n, part))
        for e, model in enumerate(whole.models) for n in range(arch.num_hidden_layers) for part in FFN
    }  # fmt: skip
    tensors, dtype = [], anchor.weights.dtype(anchor_ffn(0, FFN[0]))
    for name, shape in merged_tensors(arch, experts).items():
        if name in rows:
            tensors.append(computed_tensor(name, shape, dtype, partial(rows.__getitem__, name)))
        elif name in networks:
            tensors.append(OutputTensor.copied(name, networks[name]))
        else:
            tensors.append(whole.output(name, shape))
    return tensors


def btx(
    specialists: Sequence[Path | str],
    anchor: Path | str,
    output: Path | str,
    *,
    names: Sequence[str] | None = None,
    options: MixtureOptions = MixtureOptions(),
    progress: Progress = no_progress,
) -> None:
    """What `flexo-btx` does: dense models side by side as experts, embeddings, attention and norms averaged.

    Args:
        specialists: dense OLMo-2 folders that were trained from the anchor.
        anchor: its folder; its own network becomes the public expert.
        output: the folder to make, whole or not at all.
        names: domain of each specialist; None takes the names of their folders.
        options: settings.
        progress: shows how far it is.

    Raises:
        InputError: models, rows and names do not fit together, or the output is not free.
    """
    folders, target = [Path(folder) for folder in specialists], Path(output)
    refuse_occupied(target)
    models = average(folders)
    domains = [name_of(folder) for folder in folders] if names is None else list(names)
    if len(domains) != len(folders):
        raise InputError(f"--names {','.join(domains)}: {len(domains)} names for {len(folders)} specialists.")
    opened = open_anchor(Path(anchor))
    with progress("reading the anchor", opened.weights.nbytes) as opened.advance:
        assert opened.digest
    with progress("writing", models.models[0].nbytes * (len(folders) + 1)) as advance:
        write_mixture(opened, models, domains, target, options, advance)


def _drawn_rows(anchor: Anchor, experts: int, seed: int) -> list[torch.Tensor]:
    draw, width = torch.Generator().manual_seed(seed), anchor.architecture.hidden_size
    routers = []
    for n in range(anchor.architecture.num_hidden_layers):
        moments = anchor.moments(n)
        if moments is None:  # the public row is E[x] / E|x|^2, and E[x] is taken to be about as long as x
            size = 1 / float(anchor.public_row(n).norm()) ** 2
        else:
            mean_D, covariance_DD = moments
            size = float(covariance_DD.trace() + mean_D @ mean_D)
        routers.append(torch.randn(experts, width, generator=draw) / (size * width) ** 0.5)
    return routers


def _taken_rows(folder: Path, domains: list[str], numbers: dict[str, Any]) -> list[torch.Tensor]:
    merged = open_merged(folder)
    if merged.domains != domains or merged.architecture.to_dict() != numbers:
        raise ModelFolderError(
            f"{folder}: its experts are {', '.join(merged.domains)}, expected rows for {', '.join(domains)} of a model "
            "with the same sizes."
        )
    return [merged.weights.tensor(merged_router(n)) for n in range(merged.architecture.num_hidden_layers)]


def _training_of(model: ModelFolder) -> dict[str, Any]:
    """How a specialist was trained, if its folder says so."""
    path = model.folder / ABOUT
    training = read_json(path).get("training") if path.exists() else None
    return {"training": training} if isinstance(training, dict) and isinstance(training.get("tokens"), int) else {}
