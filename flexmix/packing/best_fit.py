"""Best-fit packing: windows that cut a document only if it is longer than a window, at the price of some padding.

    documents  E a b c d e f g h i  E j k l  E m n o p         (as in the shard; T = 8)
    window     E a b c d e f g                                 a long document fills whole windows first
    window     E m n o p h i -                                 then what is left: longest first, each into the fullest
    window     E j k l - - - -                                 window that still has room
    labels     j k l E . . . .                                 the end of a document is predicted from its last token
    positions  0 1 2 3 0 1 2 3                                 padding is a document of its own, and predicts nothing

Every token of every document is an input once, and predicts once: nothing is lost at the end of the shard. This is
best-fit decreasing (Ding et al., arXiv 2404.10830). Which chunks share a window is fixed by the shard and T alone.
"""

from __future__ import annotations

from bisect import bisect_left, insort

import numpy as np
import torch

from flexmix.packing.answers import LossOn, check_answers, in_answers, with_answers
from flexmix.packing.windows import NO_LABEL, Batch, Indices, Packing
from flexmix.tokens.shard import TokenShard


class BestFit:
    """A token shard in windows of T tokens by best fit.

    A document of n tokens makes n / T chunks, rounded up. Memory: 16 bytes a chunk and 8 a window. On answers alone,
    chunks without one are left out, and other labels are `NO_LABEL`.

    Args:
        shard: of at least one document.
        length: T, tokens in a window.
        where: the shard's text, for messages.
        loss_on: what has labels.

    Raises `InputError` if answers are asked for and the shard has none.
    """

    packing: Packing = "best_fit"

    def __init__(self, shard: TokenShard, length: int, where: str = "text", loss_on: LossOn = "all") -> None:
        self.shard, self.length, self.loss_on, self.where = shard, length, loss_on, where
        start_C, size_C = _chunks(shard.starts, length)
        if loss_on == "assistant":
            check_answers(shard, where)
            with_C = with_answers(shard, start_C, size_C)
            start_C, size_C = start_C[with_C], size_C[with_C]
        window_C = best_fit(size_C, length)
        order_C = np.argsort(window_C, kind="stable")  # chunks of a window side by side, longest first
        self.start_C, self.size_C = start_C[order_C], size_C[order_C]
        self.first_W = np.searchsorted(window_C[order_C], np.arange(window_C.max() + 2))

    def __len__(self) -> int:
        return len(self.first_W) - 1

    @property
    def padding(self) -> float:
        """The share of positions that hold no text."""
        return 1 - int(self.size_C.sum()) / (len(self) * self.length)

    def documents(self, index: int) -> Indices:
        """Which documents of the shard a window has text of, by number from 0."""
        start_C = self.start_C[self.first_W[index] : self.first_W[index + 1]]
        return np.unique(np.searchsorted(self.shard.starts, start_C, side="right") - 1)

    def read(self, indices: Indices) -> Batch:
        """Windows as `input_ids`, `labels` and `position_ids`, each [B, T] int64. Padding is the end-of-text token."""
        shape = (len(indices), self.length)
        source_BT, place_BT = np.full(shape, -1), np.zeros(shape, dtype=np.int64)
        for row, window in enumerate(indices):
            at = 0
            for chunk in range(self.first_W[window], self.first_W[window + 1]):
                start, size = self.start_C[chunk], self.size_C[chunk]
                source_BT[row, at : at + size] = np.arange(start, start + size)
                place_BT[row, at : at + size] = np.arange(size)
                at += size
            place_BT[row, at:] = np.arange(self.length - at)
        x_BT, y_BT = self._ids(source_BT), self._ids(source_BT + 1)
        padding_BT = source_BT < 0
        x_BT[padding_BT], y_BT[padding_BT] = self.shard.end_of_text, NO_LABEL
        if self.loss_on == "assistant":
            y_BT[~in_answers(self.shard, source_BT + 1)] = NO_LABEL
        batch = {"input_ids": x_BT, "labels": y_BT, "position_ids": place_BT}
        return {name: torch.from_numpy(part) for name, part in batch.items()}

    def _ids(self, places_BT: Indices) -> Indices:
        """The tokens at these places of the shard; behind its last token comes an end of text."""
        last = self.shard.tokens - 1
        ids_BT = self.shard.ids[np.clip(places_BT, 0, last)].astype(np.int64)
        return np.where(places_BT > last, self.shard.end_of_text, ids_BT)


def best_fit(size_C: Indices, capacity: int) -> Indices:
    """Which window each chunk goes to, [C], numbered from 0: longest first, each into the fullest that has room.

    Takes O(C log capacity) time. Sizes are from 1 up to `capacity`.
    """
    window_C = np.empty(len(size_C), dtype=np.int64)
    rooms: list[int] = []  # sizes of room that some window has, ascending
    windows: dict[int, list[int]] = {}  # room -> the windows that have it
    count = 0
    for chunk in np.argsort(-size_C, kind="stable"):
        size = int(size_C[chunk])
        at = bisect_left(rooms, size)
        if at == len(rooms):
            window, room = count, capacity
            count += 1
        else:
            room = rooms[at]
            window = windows[room].pop()
            if not windows[room]:
                del rooms[at], windows[room]
        window_C[chunk] = window
        if left := room - size:
            if left not in windows:
                insort(rooms, left)
                windows[left] = []
            windows[left].append(window)
    return window_C


def _chunks(starts: Indices, length: int) -> tuple[Indices, Indices]:
    """Start and size of every chunk [C], in tokens: documents in order, cut every `length` tokens."""
    sizes = np.diff(starts)
    chunks = -(-sizes // length)
    document_C = np.repeat(np.arange(len(sizes)), chunks)
    number_C = np.arange(len(document_C)) - np.repeat(np.cumsum(chunks) - chunks, chunks)
    start_C = starts[document_C] + number_C * length
    return start_C, np.minimum(length, starts[document_C + 1] - start_C)
