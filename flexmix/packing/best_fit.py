"""Best-fit packing: windows that cut a document only if it is longer than a window, at the price of some padding.

    documents  E a b c d e f g h i  E j k l  E m n o p         (as in the shard; T = 8)
    window     E a b c d e f g                                 a long document fills whole windows first
    window     E m n o p h i -                                 then what is left: longest first, each into the fullest
    window     E j k l - - - -                                 window that still has room
    labels     j k l E . . . .                                 the end of a document is predicted from its last token
    positions  0 1 2 3 0 1 2 3                                 padding is a document of its own, and predicts nothing

Every token of every document is an input once, and predicts once: nothing is lost at the end of the shard. This is
best-fit decreasing (Ding et al., arXiv 2404.10830). Which pieces share a window is fixed by the shard and T alone.
"""

from __future__ import annotations

from bisect import bisect_left, insort

import numpy as np
import torch

from flexmix.packing.windows import NO_LABEL, Batch, Indices, Packing
from flexmix.tokens.shard import TokenShard


class BestFit:
    """A token shard in windows of T tokens by best fit.

    The plan takes 16 bytes a piece and 8 a window of memory; a document of n tokens makes n / T pieces, rounded up.

    Args:
        shard: of at least one document.
        length: T, tokens in a window.
    """

    packing: Packing = "best_fit"

    def __init__(self, shard: TokenShard, length: int) -> None:
        self.shard, self.length = shard, length
        start_P, size_P = _pieces(shard.starts, length)
        window_P = best_fit(size_P, length)
        order_P = np.argsort(window_P, kind="stable")  # pieces of a window side by side, longest first
        self.start_P, self.size_P = start_P[order_P], size_P[order_P]
        self.first_W = np.searchsorted(window_P[order_P], np.arange(window_P.max() + 2))

    def __len__(self) -> int:
        return len(self.first_W) - 1

    @property
    def padding(self) -> float:
        """The share of positions that hold no text."""
        return 1 - self.shard.tokens / (len(self) * self.length)

    def read(self, indices: Indices) -> Batch:
        """Windows as `input_ids`, `labels` and `position_ids`, each [B, T] int64. Padding is the end-of-text token."""
        shape = (len(indices), self.length)
        source_BT, place_BT = np.full(shape, -1), np.zeros(shape, dtype=np.int64)
        for row, window in enumerate(indices):
            at = 0
            for piece in range(self.first_W[window], self.first_W[window + 1]):
                start, size = self.start_P[piece], self.size_P[piece]
                source_BT[row, at : at + size] = np.arange(start, start + size)
                place_BT[row, at : at + size] = np.arange(size)
                at += size
            place_BT[row, at:] = np.arange(self.length - at)
        x_BT, y_BT = self._ids(source_BT), self._ids(source_BT + 1)
        padding_BT = source_BT < 0
        x_BT[padding_BT], y_BT[padding_BT] = self.shard.end_of_text, NO_LABEL
        batch = {"input_ids": x_BT, "labels": y_BT, "position_ids": place_BT}
        return {name: torch.from_numpy(part) for name, part in batch.items()}

    def _ids(self, places_BT: Indices) -> Indices:
        """The tokens at these places of the shard; behind its last token comes an end of text."""
        last = self.shard.tokens - 1
        ids_BT = self.shard.ids[np.clip(places_BT, 0, last)].astype(np.int64)
        return np.where(places_BT > last, self.shard.end_of_text, ids_BT)


def best_fit(size_P: Indices, capacity: int) -> Indices:
    """Which window each piece goes to, [P], numbered from 0: longest first, each into the fullest that has room.

    Takes O(P log capacity) time. Sizes are from 1 up to `capacity`.
    """
    window_P = np.empty(len(size_P), dtype=np.int64)
    rooms: list[int] = []  # sizes of room that some window has, ascending
    windows: dict[int, list[int]] = {}  # room -> the windows that have it
    count = 0
    for piece in np.argsort(-size_P, kind="stable"):
        size = int(size_P[piece])
        at = bisect_left(rooms, size)
        if at == len(rooms):
            window, room = count, capacity
            count += 1
        else:
            room = rooms[at]
            window = windows[room].pop()
            if not windows[room]:
                del rooms[at], windows[room]
        window_P[piece] = window
        if left := room - size:
            if left not in windows:
                insort(rooms, left)
                windows[left] = []
            windows[left].append(window)
    return window_P


def _pieces(starts: Indices, length: int) -> tuple[Indices, Indices]:
    """Start and size of every piece [P], in tokens: documents in order, cut every `length` tokens."""
    sizes = np.diff(starts)
    pieces = -(-sizes // length)
    document_P = np.repeat(np.arange(len(sizes)), pieces)
    number_P = np.arange(len(document_P)) - np.repeat(np.cumsum(pieces) - pieces, pieces)
    start_P = starts[document_P] + number_P * length
    return start_P, np.minimum(length, starts[document_P + 1] - start_P)
