"""What a window of tokens is: batches, labels, and a token shard cut into windows of T tokens."""

from __future__ import annotations

from typing import Literal, Protocol

import numpy as np
import numpy.typing as npt
import torch

from flexmix.tokens.shard import TokenShard
from flexo.errors import InputError

Batch = dict[str, torch.Tensor]
Indices = npt.NDArray[np.int64]
Packing = Literal["concat", "best_fit"]
NO_LABEL = -100  # the label of a position that predicts nothing, as cross-entropy in torch and transformers has it


class Packed(Protocol):
    """A token shard in windows of T tokens, by number."""

    packing: Packing
    shard: TokenShard
    length: int

    def __len__(self) -> int:
        """How many windows there are."""

    def read(self, indices: Indices) -> Batch:
        """Windows as `input_ids`, `labels` and `position_ids`, each [B, T] int64."""


class Windows:
    """A token shard cut into windows of T tokens.

    Each token is predicted once, but for the very first and fewer than T at the end that fill no window.
    Raises `InputError` if the shard is shorter than one window.
    """

    packing: Packing = "concat"

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

    def read(self, indices: Indices) -> Batch:
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
