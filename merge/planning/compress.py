"""An expert's difference from the public network, cut to a low rank after training: a smaller file, and less noise.

The best approximation of a matrix by one of rank r keeps its r largest singular values (Eckart and Young, 1936). What
is kept of their squares is kept of the difference's squared norm. So under a budget the largest of all weights are
taken, and each weight gets a rank of its own. (In FlexMoRE, arXiv 2602.08818, all get the same.) The file then holds
factors (`merge.tensor_io.factors`), and a merge forms the weights from them.

F rows, D columns of a weight, r rank.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from flexo.atomic_files import refuse_existing
from flexo.console import Advance, Progress, no_progress
from flexo.errors import UsageError
from merge.formats.anchor_folder import find_anchor, open_anchor
from merge.formats.architecture import FFN, expert_ffn, factor_names
from merge.formats.expert_file import ExpertFile, open_expert, write_expert
from merge.formats.expert_header import Header, TensorInfo
from merge.planning.base_model import AnchorBase
from merge.planning.compatibility import check_belongs
from merge.tensor_io.factors import as_factors, formed
from merge.tensor_io.float_formats import Values, to_float32
from merge.tensor_io.stored_tensor import StoredTensor

if TYPE_CHECKING:
    import torch

BYTES = 2  # of a value of a factor
CONTAINER, TABLE = 512, 192  # bytes that a tensor takes at most in a container, and an entry in the header's table


@dataclass(frozen=True)
class Compressed:
    """What was made."""

    header: Header
    ranks: dict[str, int]  # of each weight; empty where the file holds whole weights
    kept: float  # share of the squared norm of the difference from the public network
    nbytes: int  # of the file
    nbytes_before: int


@dataclass(frozen=True)
class RankBudget:
    """How much of the difference is kept; exactly one of the three is given."""

    rank: int | None = None  # of every weight
    size: int | None = None  # bytes of the file, at most
    keep: float | None = None  # share of the squared norm, at least

    def __post_init__(self) -> None:
        if sum(value is not None for value in (self.rank, self.size, self.keep)) != 1:
            raise UsageError("how small? Give exactly one of --rank, --size and --keep.")
        if self.rank is not None and self.rank < 1:
            raise UsageError(f"--rank {self.rank}: expected a positive number.")
        if self.keep is not None and not 0 < self.keep <= 1:
            raise UsageError(f"--keep {self.keep}: expected a share above 0, at most 1.")


def compress(
    expert: Path | str,
    output: Path | str,
    budget: RankBudget | None = None,
    *,
    anchor: Path | str | None = None,
    whole: bool = False,
    overwrite: bool = False,
    progress: Progress = no_progress,
) -> Compressed:
    """What `flexo-compress` does: writes an expert file again with less of the difference from the public network.

    The header stays, a statement of privacy too: what is made of a private result alone is as private. Held-out losses
    and router mass become null, as they were measured before. A signature is not carried over.

    Args:
        expert: the file.
        output: the file to make.
        budget: how much is kept; None, with `whole`: all that there is.
        anchor: the folder of its anchor; None looks where the header says.
        whole: write whole weights, of the usual size, instead of factors.
        overwrite: whether a file at `output` may be replaced.
        progress: shows how far it is.

    Raises:
        InputError: the file or the anchor is damaged, they do not belong together, or no file is as small as asked for.
    """
    if budget is None and not whole:
        raise UsageError("how small? Give exactly one of --rank, --size and --keep, or --whole alone.")
    from merge.tensor_io.torch_tensors import as_tensor

    refuse_existing(Path(output), overwrite)
    before = open_expert(Path(expert))
    nbytes_before = before.path.stat().st_size  # `output` may take its place
    folder = open_anchor(find_anchor([before]) if anchor is None else Path(anchor))
    base = AnchorBase(folder, folder.folder.name, folder.digest)
    check_belongs(before, base)
    layers = range(base.architecture.num_hidden_layers)
    weights = {expert_ffn(n, part): base.ffn(0, n, part) for n in layers for part in FFN}
    tensors = {name: before.tensor(name) for name in before.tensors if ".router." in name}
    stated: dict[str, TensorInfo] = {}
    ranks: dict[str, int] = {}
    kept = 1.0
    passes = 1 if budget is None else 2
    with progress("compressing", passes * sum(public.nbytes for public in weights.values())) as advance:
        if budget is not None:
            ranks, kept = _ranks(before, weights, budget, advance)
        for name, public in weights.items():
            factors: dict[str, torch.Tensor] = {}
            data = before.formed(name, public)
            if budget is not None:
                factors, data = _truncated(name, public, data, ranks[name])
            if whole:
                tensors[name] = as_tensor(data, public)
            else:
                tensors |= factors
                sha256 = hashlib.sha256(public.title + data).hexdigest()
                stated[name] = TensorInfo(public.dtype, public.shape, sha256)
            advance(public.nbytes)
    header = before.header if budget is None else _unmeasured(before.header)
    header = write_expert(Path(output), header, tensors, replace=overwrite, formed=stated)
    return Compressed(header, {} if whole else ranks, kept, Path(output).stat().st_size, nbytes_before)


def _ranks(
    expert: ExpertFile, weights: Mapping[str, StoredTensor], budget: RankBudget, advance: Advance
) -> tuple[dict[str, int], float]:
    """The rank that each weight gets, at least 1, and the share of the squared norm that they keep together."""
    import torch

    energy: dict[str, Values] = {}
    for name, public in weights.items():
        values = torch.linalg.svdvals(_difference(public, expert.formed(name, public)))
        energy[name] = values.double().square().numpy()
        advance(public.nbytes)
    total = sum(float(values.sum()) for values in energy.values())
    if budget.rank is not None:
        ranks = {name: min(budget.rank, len(values)) for name, values in energy.items()}
    else:
        further = sorted(((-value, name) for name, values in energy.items() for value in values[1:]))
        ranks = dict.fromkeys(energy, 1)
        kept = sum(float(values[0]) for values in energy.values())
        affordable = _affordable(expert, weights, budget.size)
        for value, name in further[:affordable]:
            if budget.keep is not None and kept >= budget.keep * total:
                break
            ranks[name] += 1
            kept -= value
    kept = sum(float(energy[name][:rank].sum()) for name, rank in ranks.items())
    return ranks, kept / total if total else 1.0


def _affordable(expert: ExpertFile, weights: Mapping[str, StoredTensor], size: int | None) -> int | None:
    """How many ranks a file of `size` bytes has room for beyond one of each weight; all weights have one size."""
    if size is None:
        return None
    one = BYTES * sum(next(iter(weights.values())).shape)
    rows = [stored.nbytes for name, stored in expert.tensors.items() if ".router." in name]
    tensors = len(rows) + 3 * len(weights)  # two factors and a scale
    least = len(weights) * one + sum(rows) + len(expert.header.with_tensors({}).to_json())
    least += CONTAINER * tensors + TABLE * (tensors + len(weights))
    if size < least:
        raise UsageError(
            f"--size {size}: the smallest file of this expert takes {least} bytes, with one rank for each weight."
        )
    return (size - least) // one


def _truncated(
    weight: str, public: StoredTensor, data: bytearray, rank: int
) -> tuple[dict[str, torch.Tensor], bytearray]:
    """The best factors of so many ranks under their names in the file, and the weight that they form."""
    import torch

    u_FF, values, v_FD = torch.linalg.svd(_difference(public, data), full_matrices=False)
    left, right, scale = as_factors((u_FF[:, :rank] * values[:rank]).numpy(), v_FD[:rank].numpy())
    tensors = (torch.from_numpy(left), torch.from_numpy(right), torch.tensor([scale], dtype=torch.float32))
    factors = dict(zip(factor_names(weight), tensors, strict=True))
    return factors, formed(public.read(), public.dtype, left, right, scale)


def _difference(public: StoredTensor, data: bytearray) -> torch.Tensor:
    """What training added to the public weight, float32 [F, D]."""
    import torch

    difference = to_float32(data, public.dtype) - to_float32(public.read(), public.dtype)
    return torch.from_numpy(np.ascontiguousarray(difference.reshape(public.shape)))


def _unmeasured(header: Header) -> Header:
    """The header without what was measured of the expert before."""
    training = header.training
    losses = replace(training.losses, own_after=None, public_after=None)
    return replace(header, training=replace(training, losses=losses, router_mass=None))
