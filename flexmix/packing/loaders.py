"""Fixed windows over a token shard, in an order fixed by seed and epoch, resumable at any batch on any devices.

    tokens     E a b c E d e f g h E i ...        E starts a document (and ends the one before)
    window     E a b c E d e f                    T tokens; the labels are the same tokens one to the left
    labels     a b c E d e f g
    positions  0 1 2 3 0 1 2 3                    they restart with each document

No token attends to another document, and positions are all that says so. transformers reads restarting positions as
packed documents when it is given no attention mask: for sdpa and eager it makes an explicit mask, for flex attention a
BlockMask. For flash attention it looks at positions in batches of one row alone; `model_inputs` says it for more rows.

`flexmix.packing.best_fit` makes windows that cut fewer documents, `flexmix.packing.mixture` mixes sources. B rows,
T positions.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Protocol

import numpy as np
import torch

from flexmix.packing.windows import Batch, Indices, Packed


class Rows(Protocol):
    """An endless order of windows, of one source or more."""

    def at(self, places: Indices) -> Batch:
        """The windows at these places of the order, and the index of the `source` of each, [B] int64."""

    def order(self) -> list[dict[str, Any]]:
        """What decides about the order, in plain values, for checkpoints."""

    def window(self, place: int) -> tuple[Packed, int]:
        """Which window of what is at a place of the order."""


class Stream:
    """The endless order of a shard's windows: every epoch a new permutation, fixed by (seed, epoch)."""

    def __init__(self, windows: Packed, seed: int) -> None:
        self.windows, self.seed = windows, seed
        self._epoch_order = lru_cache(maxsize=2)(self._permute)

    def at(self, places: Indices) -> Batch:
        """The windows at these places of the order."""
        batch = self.windows.read(np.array([self.window(place)[1] for place in places], dtype=np.int64))
        return batch | {"source": torch.zeros(len(places), dtype=torch.int64)}

    def window(self, place: int) -> tuple[Packed, int]:
        """Which window of what is at a place of the order."""
        epoch, within = divmod(int(place), len(self.windows))
        return self.windows, int(self._epoch_order(epoch)[within])

    def read(self, first: int, count: int) -> Batch:
        """`count` windows from place `first` of the order on."""
        return self.at(np.arange(first, first + count))

    def order(self) -> list[dict[str, Any]]:
        windows = self.windows
        counts = {"windows": len(windows), "length": windows.length, "tokens": windows.shard.tokens}
        answers = {"loss_on": windows.loss_on} if windows.loss_on != "all" else {}  # as it was before there were any
        return [{"packing": windows.packing, "seed": self.seed} | counts | answers]

    def _permute(self, epoch: int) -> Indices:
        return np.random.Generator(np.random.PCG64([self.seed, epoch])).permutation(len(self.windows))


@dataclass(frozen=True)
class Seat:
    """Which rows of every batch a device reads, and in how many parts, one after the other."""

    rank: int = 0
    devices: int = 1
    parts: int = 1


class TrainLoader:
    """Training batches of own windows and a share of public ones, for a fixed number of steps.

    Batch k depends on nothing but the seed and k, so a loader whose state was restored goes on exactly where it was.
    Each batch adds `own` [B] bool, which rows are the owner's; own rows come first, and the `source` of the others is
    -1. It also adds `balance` [B], weights of mean 1 over the whole run with which own and public rows count as if
    there were equally many.

    Of several devices, each reads its rows of the same batch: with B = 8, device 1 of 4 has rows 1 and 5. In parts, a
    device reads its rows one part after the other, dealt out in the same way. The state is the number of batches, the
    same on every device, so it can be restored with another number of devices or parts.

    Args:
        own: the owner's windows.
        public: public windows, needed for a share above 0.
        share: of the rows that are public, from 0 up to but not including 1.
        batch_size: rows in a batch, over all devices; a multiple of `seat.devices * seat.parts`.
        steps: batches in a run.
        seat: the device that this loader serves.
    """

    def __init__(
        self,
        own: Rows,
        public: Rows | None,
        share: float,
        batch_size: int,
        steps: int,
        seat: Seat = Seat(),
    ) -> None:
        assert 0 <= share < 1 and (share == 0 or public is not None), f"a share of {share} needs public text"
        assert 0 <= seat.rank < seat.devices and batch_size % (seat.devices * seat.parts) == 0, f"{batch_size}, {seat}"
        self.own, self.public = own, public
        self.share, self.batch_size, self.steps, self.seat = share, batch_size, steps, seat
        self.step = 0

    def __len__(self) -> int:
        return self.steps * self.seat.parts

    def __iter__(self) -> Iterator[Batch]:
        while self.step < self.steps:
            for part in range(self.seat.parts):
                batch = self.batch(self.step, part)
                self.step += part == self.seat.parts - 1
                yield batch
        self.step = 0

    def batch(self, k: int, part: int = 0) -> Batch:
        """This device's rows of batch `k`, or a part of them. Rows are handed to the public text so that its share
        holds over any stretch of batches.
        """
        own_places, public_places = self._places(k, part)
        own = np.arange(len(own_places) + len(public_places)) < len(own_places)
        batch = self.own.at(own_places)
        if not own.all():
            assert self.public is not None
            public = self.public.at(public_places)
            public["source"].fill_(-1)
            batch = {name: torch.cat([rows, public[name]]) for name, rows in batch.items()}
        weights = [1 / (2 * share) for share in (1 - self.share, self.share)] if self.share else [1.0, 1.0]
        balance = np.where(own, *weights).astype(np.float32)
        return batch | {"own": torch.from_numpy(own), "balance": torch.from_numpy(balance)}

    def windows(self, k: int, part: int = 0) -> list[tuple[Packed, int]]:
        """Which windows `batch` reads, row by row, to say where something went wrong."""
        own, public = self._places(k, part)
        found = [self.own.window(place) for place in own.tolist()]
        return found + [self.public.window(place) for place in public.tolist() if self.public is not None]

    def order(self) -> dict[str, Any]:
        """What a number of batches means: it counts the same batches only where this is the same."""
        order = {"batch_size": self.batch_size, "public_share": self.share, "own": self.own.order()}
        return order | ({"public": self.public.order()} if self.public else {})

    def state_dict(self) -> dict[str, Any]:
        return {"step": self.step}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.step = state["step"]

    def _places(self, k: int, part: int) -> tuple[Indices, Indices]:
        """Where in the orders of own and of public text this device's rows of batch `k`, or a part of them, are."""
        before, after = self._public_rows(k), self._public_rows(k + 1)
        n_own = self.batch_size - (after - before)
        seat = self.seat
        mine = np.arange(seat.rank + seat.devices * part, self.batch_size, seat.devices * seat.parts)
        own = mine < n_own
        return k * self.batch_size - before + mine[own], before + mine[~own] - n_own

    def _public_rows(self, batches: int) -> int:
        return int(batches * self.batch_size * self.share)


class EvalLoader:
    """At most `limit` windows of a shard in their order, spread over all of it: neighbours share documents."""

    def __init__(self, windows: Packed, batch_size: int, limit: int) -> None:
        self.windows, self.batch_size = windows, batch_size
        self.count = min(len(windows), limit)
        self.places = np.arange(self.count) * len(windows) // max(1, self.count)

    def __len__(self) -> int:
        return -(-self.count // self.batch_size)

    def __iter__(self) -> Iterator[Batch]:
        for first in range(0, self.count, self.batch_size):
            yield self.windows.read(self.places[first : first + self.batch_size])
