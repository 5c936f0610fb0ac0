"""Which units each step of a private run reads: every one with the same probability, on its own (Poisson sampling).

The accounting holds for this way of drawing and no other: shuffled epochs, or batches of a fixed size, spend more.

U units in all, W windows of a step, T positions.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch

from flexmix.packing.loaders import Stream
from flexmix.packing.units import UnitWindows
from flexmix.packing.windows import Batch, Indices
from trainers.privacy.randomness import Secret

PUBLIC = -1  # in place of a unit


@dataclass(frozen=True)
class PoissonUnits:
    """The units of every step, and their windows; a function of the secret and the step alone.

    Args:
        windows: the owner's.
        rate: q, the probability with which a step draws a unit.
        at_most: windows of a unit that a step reads, chosen at random.
        secret: of the run. Who can tell which units were drawn needs less to tell who is among them.
        public: public windows beside them, which are nobody's.
        public_windows: how many of them in a step.
    """

    windows: UnitWindows
    rate: float
    at_most: int
    secret: Secret
    public: Stream | None = None
    public_windows: int = 0

    def drawn(self, step: int) -> Indices:
        """The units of a step, ascending; there may be none."""
        return np.flatnonzero(self.secret.uniform("units", step, self.windows.units) < self.rate)

    def batch(self, step: int) -> Batch:
        """A step's windows, unit by unit, then the public ones: `input_ids`, `labels`, `position_ids` [W, T] int64.

        `unit` [W] numbers the units of the step from 0, or is `PUBLIC`; `window` [W] is the number among the owner's,
        or `PUBLIC`; `own` [W] bool; `balance` [W] as of `flexmix.packing.loaders.TrainLoader`, from the expected share.
        """
        drawn = self.drawn(step)
        chosen = [self._chosen(step, int(unit)) for unit in drawn]
        unit_W = np.repeat(np.arange(len(drawn)), [len(part) for part in chosen])
        window_W = np.concatenate([np.empty(0, np.int64), *chosen])
        batch = self.windows.read(window_W) | {"window": torch.from_numpy(window_W)}
        if self.public is not None and self.public_windows:
            public = self.public.read(step * self.public_windows, self.public_windows)
            public["window"] = torch.full_like(public["source"], PUBLIC)
            batch = {name: torch.cat([part, public[name]]) for name, part in batch.items()}
            unit_W = np.concatenate([unit_W, np.full(self.public_windows, PUBLIC)])
        unit = torch.from_numpy(unit_W.astype(np.int64))
        return batch | {"unit": unit, "own": unit != PUBLIC, "balance": self._balance(unit != PUBLIC)}

    def _balance(self, own_W: torch.Tensor) -> torch.Tensor:
        own = self.rate * float(np.minimum(self.windows.windows_U, self.at_most).sum())
        if not (own and self.public_windows):
            return torch.ones(len(own_W))
        total = own + self.public_windows
        return torch.where(own_W, total / (2 * own), total / (2 * self.public_windows))

    def _chosen(self, step: int, unit: int) -> Indices:
        """At most so many of a unit's windows, without repetition, in their order."""
        windows = self.windows.of_unit(unit)
        if len(windows) <= self.at_most:
            return windows
        order = np.argsort(self.secret.uniform(f"windows/{unit}", step, len(windows)))
        return np.sort(windows[order[: self.at_most]])


def parts(batch: Batch, windows: int, rank: int = 0, devices: int = 1) -> Iterator[Batch]:
    """A device's share of a step in parts of at most so many windows, more where one unit has more; no unit is cut."""
    unit_W = batch["unit"].cpu().numpy()
    public = np.flatnonzero(unit_W == PUBLIC)
    units = [np.flatnonzero(unit_W == unit) for unit in range(unit_W.max(initial=PUBLIC) + 1)]
    pieces = [*units, *public[:, None]][rank::devices]
    part: list[Indices] = []
    for piece in pieces:
        if part and sum(map(len, part)) + len(piece) > windows:
            yield _rows(batch, part)
            part = []
        part.append(piece)
    if part:
        yield _rows(batch, part)


def _rows(batch: Batch, part: list[Indices]) -> Batch:
    rows = torch.from_numpy(np.concatenate(part))
    return {name: values[rows] for name, values in batch.items()}
