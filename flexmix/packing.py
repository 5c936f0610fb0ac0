"""Fixed windows over a token shard, in an order fixed by seed and epoch, resumable at any batch.

    tokens     E a b c E d e f g h E i ...        E starts a document (and ends the one before)
    window     E a b c E d e f                    T tokens; the labels are the same tokens one to the left
    labels     a b c E d e f g
    positions  0 1 2 3 0 1 2 3                    they restart with each document

transformers reads restarting positions as packed documents and masks attention between them (for sdpa and eager by an
explicit mask, for flash attention by cumulative lengths), so no token attends to another document.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from flexmix.tokens import TokenShard
from merge.errors import InputError

Batch = dict[str, torch.Tensor]


class Windows:
    """A token shard cut into windows of T tokens.

    Each token is predicted once, but for the very first and fewer than T at the end that fill no window.
    Raises `InputError` if the shard is shorter than one window.
    """

    def __init__(self, shard: TokenShard, length: int, where: str) -> None:
        self.shard, self.length = shard, length
        self.count = (shard.tokens - 1) // length
        if self.count == 0:
            raise InputError(
                f"{where}: {shard.tokens} tokens in {shard.documents} documents, one window needs {length + 1}. "
                "Give more text, or a smaller data.length."
            )

    def __len__(self) -> int:
        return self.count

    def read(self, indices: npt.NDArray[np.int64]) -> Batch:
        """Windows as `input_ids`, `labels` and `position_ids`, each [B, T] int64."""
        ids_BT = self.shard.ids[indices[:, None] * self.length + np.arange(self.length + 1)].astype(np.int64)
        x_BT, y_BT = ids_BT[:, :-1], ids_BT[:, 1:]
        place_T = np.arange(self.length)
        start_BT = np.maximum.accumulate(np.where(x_BT == self.shard.end_of_text, place_T, 0), axis=1)
        return {
            "input_ids": torch.from_numpy(np.ascontiguousarray(x_BT)),
            "labels": torch.from_numpy(np.ascontiguousarray(y_BT)),
            "position_ids": torch.from_numpy(place_T - start_BT),
        }


class Stream:
    """The endless order of a shard's windows: every epoch a new permutation, fixed by (seed, epoch)."""

    def __init__(self, windows: Windows, seed: int) -> None:
        self.windows, self.seed = windows, seed
        self._epoch_order = lru_cache(maxsize=2)(self._permute)

    def read(self, first: int, count: int) -> Batch:
        """`count` windows from place `first` of the order on."""
        epochs, places = np.divmod(np.arange(first, first + count), len(self.windows))
        order = [self._epoch_order(int(e))[p] for e, p in zip(epochs, places, strict=True)]
        return self.windows.read(np.array(order, dtype=np.int64))

    def _permute(self, epoch: int) -> npt.NDArray[np.int64]:
        return np.random.Generator(np.random.PCG64([self.seed, epoch])).permutation(len(self.windows))


class TrainLoader:
    """Training batches of own windows and a share of public ones, for a fixed number of steps.

    Batch k depends on nothing but the seed and k, so a loader whose state was restored goes on exactly where it was.
    Each batch adds `own` [B] bool, which rows are the owner's; own rows come first.
    """

    def __init__(self, own: Stream, public: Stream | None, share: float, batch_size: int, steps: int) -> None:
        assert 0 <= share < 1 and (share == 0 or public is not None), f"a share of {share} needs public text"
        self.own, self.public = own, public
        self.share, self.batch_size, self.steps = share, batch_size, steps
        self.step = 0

    def __len__(self) -> int:
        return self.steps

    def __iter__(self) -> Iterator[Batch]:
        while self.step < self.steps:
            batch = self.batch(self.step)
            self.step += 1
            yield batch
        self.step = 0

    def batch(self, k: int) -> Batch:
        """Batch number `k`: rows are handed to the public text so that its share holds over any stretch of batches."""
        before, after = self._public_rows(k), self._public_rows(k + 1)
        n_public = after - before
        batch = self.own.read(k * self.batch_size - before, self.batch_size - n_public)
        own = torch.arange(self.batch_size) < self.batch_size - n_public
        if n_public:
            assert self.public is not None
            public = self.public.read(before, n_public)
            batch = {name: torch.cat([rows, public[name]]) for name, rows in batch.items()}
        return batch | {"own": own}

    def state_dict(self) -> dict[str, Any]:
        return {"step": self.step}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.step = state["step"]

    def _public_rows(self, batches: int) -> int:
        return int(batches * self.batch_size * self.share)


class EvalLoader:
    """The first windows of a held-out shard in their order, at most `limit` of them."""

    def __init__(self, windows: Windows, batch_size: int, limit: int) -> None:
        self.windows, self.batch_size = windows, batch_size
        self.count = min(len(windows), limit)

    def __len__(self) -> int:
        return -(-self.count // self.batch_size)

    def __iter__(self) -> Iterator[Batch]:
        for first in range(0, self.count, self.batch_size):
            yield self.windows.read(np.arange(first, min(first + self.batch_size, self.count)))
