"""Windows for training with privacy: each holds text of one unit (a document, a patient, an account) and no other's.

    documents  E a b c d e f g h i  E j k l  E m n o p        of the units 1, 2, 1; T = 8
    window     E a b c d e f g                                unit 1: its documents end to end, cut every T tokens
    window     h i E m n o p -
    window     E j k l - - - -                                unit 2
    labels     j k l E . . . .                                the end of a unit is predicted, padding is not

A guarantee about a unit is about everything that depends on it, so packing documents together would break it: a window
of two units has one gradient, and removing one of them changes the other's.
"""

from __future__ import annotations

import numpy as np
import torch

from flexmix.packing.answers import LossOn
from flexmix.packing.windows import NO_LABEL, Batch, Indices
from flexmix.tokens.shard import TokenShard


class UnitWindows:
    """A token shard in windows of T tokens, none with text of two units.

    Args:
        shard: of at least one document.
        length: T, tokens in a window.
        unit_S: the unit of each document of the shard, any integers, [documents]; None: each is one of its own.
        where: the shard's text, for messages.
    """

    packing = "units"
    loss_on: LossOn = "all"

    def __init__(self, shard: TokenShard, length: int, unit_S: Indices | None = None, where: str = "text") -> None:
        assert unit_S is None or len(unit_S) == shard.documents, "units and documents do not fit"
        self.shard, self.length, self.where = shard, length, where
        units = np.arange(shard.documents) if unit_S is None else np.unique(unit_S, return_inverse=True)[1]
        order_S = np.argsort(units, kind="stable")  # documents of a unit side by side, in their order
        sizes_S = np.diff(shard.starts)[order_S]
        self._order_S = order_S
        self._start_S = shard.starts[:-1][order_S]
        self._end_S = np.cumsum(sizes_S)  # in tokens of the units laid end to end
        self.tokens_U = np.bincount(units[order_S], weights=sizes_S).astype(np.int64)
        self.windows_U = -(-self.tokens_U // length)
        self._first_U = np.cumsum(self.windows_U) - self.windows_U
        self._begin_U = np.cumsum(self.tokens_U) - self.tokens_U

    @property
    def units(self) -> int:
        return len(self.tokens_U)

    def __len__(self) -> int:
        return int(self.windows_U.sum())

    def of_unit(self, unit: int) -> Indices:
        """The numbers of a unit's windows."""
        return np.arange(self._first_U[unit], self._first_U[unit] + self.windows_U[unit])

    def documents(self, index: int) -> Indices:
        """Which documents of the shard a window has text of, by number from 0."""
        unit = np.searchsorted(self._first_U, index, side="right") - 1
        first = (index - self._first_U[unit]) * self.length
        last = min(first + self.length, self.tokens_U[unit]) - 1
        begin, end = np.searchsorted(self._end_S, self._begin_U[unit] + np.array([first, last]), side="right")
        return self._order_S[begin : end + 1]

    def read(self, indices: Indices) -> Batch:
        """Windows as `input_ids`, `labels` and `position_ids`, each [B, T] int64. Padding is the end-of-text token."""
        unit_B = np.searchsorted(self._first_U, indices, side="right") - 1
        within_BT = ((indices - self._first_U[unit_B]) * self.length)[:, None] + np.arange(self.length)
        size_B1 = self.tokens_U[unit_B][:, None]
        padding_BT = within_BT >= size_B1
        x_BT = self._ids(unit_B, np.minimum(within_BT, size_B1 - 1))
        y_BT = self._ids(unit_B, np.minimum(within_BT + 1, size_B1 - 1))
        x_BT[padding_BT] = self.shard.end_of_text
        y_BT[within_BT + 1 == size_B1] = self.shard.end_of_text
        y_BT[padding_BT] = NO_LABEL
        place_T = np.arange(self.length)
        starts_BT = (x_BT == self.shard.end_of_text) & ~padding_BT
        starts_BT[:, 1:] |= padding_BT[:, 1:] & ~padding_BT[:, :-1]  # padding is a document of its own
        place_BT = place_T - np.maximum.accumulate(np.where(starts_BT, place_T, 0), axis=1)
        batch = {"input_ids": x_BT, "labels": y_BT, "position_ids": place_BT}
        return {name: torch.from_numpy(np.ascontiguousarray(part)) for name, part in batch.items()}

    def _ids(self, unit_B: Indices, within_BT: Indices) -> Indices:
        """The tokens at these places of units."""
        place_BT = self._begin_U[unit_B][:, None] + within_BT
        document_BT = np.searchsorted(self._end_S, place_BT, side="right")
        before_BT = np.where(document_BT > 0, self._end_S[document_BT - 1], 0)
        ids_BT: Indices = self.shard.ids[self._start_S[document_BT] + place_BT - before_BT].astype(np.int64)
        return ids_BT
