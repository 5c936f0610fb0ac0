"""Likeness: experts of the same text under two names, and one that has left and comes back a little changed.

Two experts that start from one anchor and learn from the same text move their weights the same way, whatever their
seed; experts of different texts do not, beyond what all text has in common. So what is compared is what training
changed, as a cosine over a sample of each layer's weights: those of twins stand out against those of all other pairs.

A *sketch* keeps enough of that change to know an expert again when its file is gone: the signs of 512 sums, over
disjoint random parts of the sample with random signs. The share of signs that differ is the angle between two changes,
over pi (SimHash: Charikar, STOC 2002), with a standard deviation of 0.02; one bit flipped, other rounding or a little
noise moves it hardly at all. No weight can be had back from it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import combinations

import numpy as np
from numpy.typing import NDArray

from merge.formats.architecture import FFN, expert_ffn
from merge.formats.expert_file import ExpertFile
from merge.planning.base_model import Base
from merge.planning.revocation import BITS
from merge.tensor_io.float_formats import to_float32
from merge.tensor_io.stored_tensor import StoredTensor

SAMPLE = 1 << 16  # bytes of each weight that are read
# cosine of what training changed, above which two experts are taken for twins: between 0.25 (NorMuon) and 0.62 (AdamW)
# for the same text, 0.17 at most for different ones (docs/log.md)
ALIKE = 0.2
Moved = NDArray[np.float32]


def moved_by_training(base: Base, experts: Sequence[ExpertFile]) -> dict[str, Moved]:
    """What training changed in each expert, by domain: a sample of its weights as one vector of unit length, or zero.

    Reads 64 kB of each weight, so that it costs little beside a merge. Empty where the base's experts are quantised.
    """
    return {} if base.scheme else {expert.domain: _moved(base, expert) for expert in experts}


def sketch_of(moved: Moved) -> str:
    """The sketch of what training changed, in hex; empty where it changed nothing."""
    if not moved.any():
        return ""
    mixed = np.arange(1, len(moved) + 1, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)  # SplitMix64, for all time
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
        mixed = (mixed ^ (mixed >> np.uint64(shift))) * np.uint64(factor)
    mixed ^= mixed >> np.uint64(31)
    signed = np.where(mixed >> np.uint64(63), moved, -moved)
    sums = np.bincount((mixed % np.uint64(BITS)).astype(np.int64), signed, BITS)
    return np.packbits(sums > 0).tobytes().hex()


def twin_warnings(moved: Mapping[str, Moved], experts: Sequence[ExpertFile]) -> list[str]:
    """A line for each two of `experts` that learned the same: equal networks, or changed in the same way."""
    found = []
    for one, other in combinations(experts, 2):
        if one.header.network == other.header.network:
            found.append(
                f"{one.path} and {other.path}: the same network under two names. It would count twice; keep one of them"
            )
        elif moved and (cosine := float(moved[one.domain] @ moved[other.domain])) > ALIKE:
            found.append(
                f"{one.path} and {other.path}: training changed them in the same way (cosine {cosine:.2f}, others are "
                "far below). Is it the same text, or overlapping? They would share the mass of one"
            )
    return found


def _moved(base: Base, expert: ExpertFile) -> Moved:
    parts = []
    for n in range(base.architecture.num_hidden_layers):
        for part in FFN:
            name, public = expert_ffn(n, part), base.ffn(0, n, part)
            before = _sample(public)
            if name in expert.tensors:
                after = _sample(expert.tensors[name])
            else:
                rows = -(-SAMPLE * public.shape[0] // public.nbytes)
                after = to_float32(expert.formed(name, public, rows), public.dtype)[: len(before)]
            parts.append(after - before[: len(after)] if len(before) >= len(after) else after)
    whole = np.concatenate(parts).astype(np.float32)
    return whole / max(float(np.linalg.norm(whole)), 1e-30)


def _sample(stored: StoredTensor) -> NDArray[np.float32]:
    view = memoryview(bytearray(min(SAMPLE, stored.nbytes)))
    with stored.path.open("rb") as file:
        stored.fill(file.fileno(), view, 0)
    return np.asarray(to_float32(bytearray(view), stored.dtype))
