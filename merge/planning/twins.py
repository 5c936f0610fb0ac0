"""Twins: two experts of the same or overlapping text under two names, which would share between them what is one's.

Two experts that start from one anchor and learn from the same text move their weights the same way, whatever their
seed; experts of different texts do not, beyond what all text has in common. So what is compared is what training
changed, as a cosine over a sample of each layer's weights: those of twins stand out against those of all other pairs.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations

import numpy as np
from numpy.typing import NDArray

from merge.formats.architecture import FFN, expert_ffn
from merge.formats.expert_file import ExpertFile
from merge.planning.base_model import Base
from merge.tensor_io.float_formats import to_float32
from merge.tensor_io.stored_tensor import StoredTensor

SAMPLE = 1 << 16  # bytes of each weight that are read
ALIKE = 0.5  # cosine of what training changed, above which two experts are taken for twins


def twin_warnings(base: Base, experts: Sequence[ExpertFile]) -> list[str]:
    """A line for each two of `experts` that learned the same: equal networks, or changed in the same way.

    Reads a sample of 64 kB of each weight, so that it costs little beside the merge.
    """
    if base.scheme or len(experts) < 2:
        return []
    found = []
    moved = {expert.domain: _moved(base, expert) for expert in experts}
    for one, other in combinations(experts, 2):
        if _network(one) == _network(other):
            found.append(
                f"{one.path} and {other.path}: the same network under two names. It would count twice; keep one of them"
            )
        elif (cosine := _cosine(moved[one.domain], moved[other.domain])) > ALIKE:
            found.append(
                f"{one.path} and {other.path}: training changed them in the same way (cosine {cosine:.2f}, others are "
                "far below). Is it the same text, or overlapping? They would share the mass of one"
            )
    return found


def _network(expert: ExpertFile) -> list[str]:
    """The digests of an expert's weights, without its rows."""
    return [expert.header.tensors[name].sha256 for name in sorted(expert.tensors) if ".router." not in name]


def _moved(base: Base, expert: ExpertFile) -> NDArray[np.float32]:
    """What training changed in a sample of the weights, as one vector of unit length."""
    parts = []
    for n in range(base.architecture.num_hidden_layers):
        for part in FFN:
            after = _sample(expert.tensors[expert_ffn(n, part)])
            before = _sample(base.ffn(0, n, part))
            parts.append(after - before[: len(after)] if len(before) >= len(after) else after)
    whole = np.concatenate(parts).astype(np.float32)
    return whole / max(float(np.linalg.norm(whole)), 1e-30)


def _sample(stored: StoredTensor) -> NDArray[np.float32]:
    view = memoryview(bytearray(min(SAMPLE, stored.nbytes)))
    with stored.path.open("rb") as file:
        stored.fill(file.fileno(), view, 0)
    return np.asarray(to_float32(bytearray(view), stored.dtype))


def _cosine(one: NDArray[np.float32], other: NDArray[np.float32]) -> float:
    return float(one @ other)
