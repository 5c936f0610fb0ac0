"""Several sources of one owner in one order: each has its share of the rows over any stretch, and its own epochs.

    shares = mixture_shares([9_000_000, 1_000_000], temperature=2.0)      # 0.75, 0.25: the small one counts for more
    rows = Mixture([Stream(big, seed), Stream(small, seed)], shares)

Which source the row at a place comes from follows from the place alone, so a mixture resumes like a single source.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from flexmix.packing.loaders import Stream
from flexmix.packing.windows import Batch, Indices, Packed
from flexo.errors import InputError

UNIT = 1 << 32  # shares are counted in whole parts of it, so that no place is rounded differently on another machine


@dataclass(frozen=True)
class WeightedWindows:
    """The windows of one source, and its weight; None: by its size."""

    windows: Packed
    weight: float | None = None


def mixture_shares(
    sizes: Sequence[float], weights: Sequence[float | None] | None = None, temperature: float = 1.0
) -> list[float]:
    """The share of each source, adding up to 1.

    A share is proportional to `weight^(1 / temperature)`, and a weight that is not given is the source's size: 1 keeps
    the sources as they are, larger temperatures even them out, smaller ones sharpen.

    Args:
        sizes: of the sources, in tokens.
        weights: for all sources or for none.
        temperature: above 0.

    Raises:
        InputError: weights for some sources only, or a weight or temperature that is not positive.
    """
    if weights is None or all(weight is None for weight in weights):
        weights = list(sizes)
    given = [weight for weight in weights if weight is not None]
    if len(given) < len(weights):
        raise InputError(f"mixture: weights {list(weights)}. Give a weight to every source, or to none.")
    if not all(0 < value < float("inf") for value in (*given, temperature)):
        raise InputError(f"mixture: weights {given} and temperature {temperature} must be positive numbers.")
    logs = np.log(given) / temperature
    powers = np.exp(logs - logs.max())
    return [float(share) for share in powers / powers.sum()]


class Mixture:
    """Rows of several streams, interleaved evenly.

    Of the first n places, the first stream has floor(n * share); of those left, the next one has its share of what is
    left, and so on: within one row a source of what it is due, so epochs of a small source pass evenly, too.

    Args:
        streams: at least one.
        shares: of the streams, positive, adding up to 1.
    """

    def __init__(self, streams: Sequence[Stream], shares: Sequence[float]) -> None:
        assert len(streams) == len(shares) > 0, f"{len(streams)} streams, {len(shares)} shares"
        self.streams = list(streams)
        left = [sum(shares[n:]) for n in range(len(shares))]
        self.parts = [min(UNIT, round(share / rest * UNIT)) for share, rest in zip(shares, left, strict=True)]
        self.parts[-1] = UNIT

    def counts(self, places: int) -> list[int]:
        """How many of the first `places` places each stream has."""
        counts = []
        for part in self.parts:
            counts.append(places * part // UNIT)
            places -= counts[-1]
        return counts

    def at(self, places: Indices) -> Batch:
        """The windows at these places of the order."""
        if len(self.streams) == 1:
            return self.streams[0].at(places)
        rows: list[list[int]] = [[] for _ in self.streams]  # of the batch, by stream
        within: list[list[int]] = [[] for _ in self.streams]  # places in the stream's own order
        for row, place in enumerate(places.tolist()):
            stream, at = self._stream(place)
            rows[stream].append(row)
            within[stream].append(at)
        parts = [
            stream.at(np.array(at, dtype=np.int64)) | {"source": torch.full((len(at),), n)}
            for n, (stream, at) in enumerate(zip(self.streams, within, strict=True))
        ]
        back = torch.tensor([row for part in rows for row in part]).argsort()
        return {name: torch.cat([part[name] for part in parts])[back] for name in parts[0]}

    def window(self, place: int) -> tuple[Packed, int]:
        """Which window of what is at a place of the order."""
        stream, at = self._stream(place)
        return self.streams[stream].window(at)

    def _stream(self, place: int) -> tuple[int, int]:
        """Which stream the row at a place is of, and its place in that stream's own order."""
        before, after = self.counts(place), self.counts(place + 1)
        stream = next(n for n, (was, now) in enumerate(zip(before, after, strict=True)) if now > was)
        return stream, before[stream]

    def order(self) -> list[dict[str, Any]]:
        return [stream.order()[0] | {"part": part} for stream, part in zip(self.streams, self.parts, strict=True)]


def mix(sources: Sequence[WeightedWindows], temperature: float, seed: int) -> Mixture:
    """The mixture of an owner's sources, each in its order fixed by `seed`."""
    sizes = [float(source.windows.shard.tokens) for source in sources]
    shares = mixture_shares(sizes, [source.weight for source in sources], temperature)
    return Mixture([Stream(source.windows, seed) for source in sources], shares)
