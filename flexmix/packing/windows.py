"""What a window of tokens is: batches, labels, and a token shard cut into windows of T tokens."""

from __future__ import annotations

from typing import Literal, Protocol

import numpy as np
import numpy.typing as npt
import torch

from flexmix.packing.answers import LossOn, check_answers, in_answers, with_answers
from flexmix.tokens.shard import TokenShard
from flexo.errors import InputError

Batch = dict[str, torch.Tensor]
Indices = npt.NDArray[np.int64]
Packing = Literal["concat", "best_fit"]
NO_LABEL = -100  # the label of a position that predicts nothing, as cross-entropy in torch and transformers has it


class Packed(Protocol):
    """A token shard in windows of T tokens, by number."""

    shard: TokenShard
    length: int
    where: str  # the shard's text, for messages

    @property
    def packing(self) -> str:
        """How documents are laid into windows."""

    @property
    def loss_on(self) -> LossOn:
        """What has labels."""

    def __len__(self) -> int:
        """How many windows there are."""

    def read(self, indices: Indices) -> Batch:
        """Windows as `input_ids`, `labels` and `position_ids`, each [B, T] int64."""

    def documents(self, index: int) -> Indices:
        """Which documents of the shard a window has text of, by number from 0."""


class Windows:
    """A token shard cut into windows of T tokens.

    Each token is predicted once, but for the very first and fewer than T at the end that fill no window. On answers
    alone, other labels are `NO_LABEL`, and windows without an answer are left out.

    Raises `InputError` if the shard is shorter than one window, or without answers where those are asked for.
    """

    packing: Packing = "concat"

    def __init__(self, shard: TokenShard, length: int, where: str, loss_on: LossOn = "all") -> None:
        self.shard, self.length, self.loss_on, self.where = shard, length, loss_on, where
        self.count = (shard.tokens - 1) // length
        if self.count == 0:
            raise InputError(
                f"{where}: {shard.tokens} tokens in {shard.documents} documents, one window needs {length + 1}. "
                "Give more text, or a smaller data.length."
            )
        if loss_on == "assistant":
            check_answers(shard, where)
            first_W = np.arange(self.count) * length
            self.number_W = np.flatnonzero(with_answers(shard, first_W, np.full(self.count, length)))
            self.count = len(self.number_W)
            if self.count == 0:  # all answers are in the tokens at the end that fill no window
                raise InputError(
                    f"{where}: its only answers are at the end, in fewer tokens than a window. Give more text, or a "
                    "smaller data.length."
                )

    def __len__(self) -> int:
        return self.count

    def documents(self, index: int) -> Indices:
        """Which documents of the shard a window has text of, by number from 0."""
        first = (self.number_W[index] if self.loss_on == "assistant" else index) * self.length
        begin, end = np.searchsorted(self.shard.starts, [first, first + self.length - 1], side="right")
        return np.arange(begin - 1, end)

    def read(self, indices: Indices) -> Batch:
        """Windows as `input_ids`, `labels` and `position_ids`, each [B, T] int64."""
        if self.loss_on == "assistant":
            indices = self.number_W[indices]
        at_BT = indices[:, None] * self.length + np.arange(self.length + 1)
        ids_BT = self.shard.ids[at_BT].astype(np.int64)
        x_BT, y_BT = ids_BT[:, :-1], ids_BT[:, 1:].copy()
        if self.loss_on == "assistant":
            y_BT[~in_answers(self.shard, at_BT[:, 1:])] = NO_LABEL
        return {
            "input_ids": torch.from_numpy(np.ascontiguousarray(x_BT)),
            "labels": torch.from_numpy(y_BT),
            "position_ids": torch.from_numpy(self._positions(x_BT, at_BT[:, :-1])),
        }

    def _positions(self, x_BT: Indices, at_BT: Indices) -> Indices:
        """The place of every token in its document, as far as that is in the window."""
        if self.shard.conversations:  # a chat template may write the end-of-text token behind each answer
            starts = self.shard.starts
            return at_BT - np.maximum(starts[np.searchsorted(starts, at_BT, side="right") - 1], at_BT[:, :1])
        place_T = np.arange(self.length)
        start_BT = np.maximum.accumulate(np.where(x_BT == self.shard.end_of_text, place_T, 0), axis=1)
        return place_T - start_BT
