"""Receipts of answers, in memory until they expire. Each names its line of the log."""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable
from typing import Any


class Receipts:
    """Belongs to one event loop.

    Args:
        seconds: how long a receipt can be asked for.
        most: receipts that are kept; the oldest go first.
        clock: in seconds.
    """

    def __init__(self, seconds: float, most: int = 100_000, clock: Callable[[], float] = time.time) -> None:
        self._seconds, self._most, self._clock = seconds, most, clock
        self._kept: OrderedDict[str, tuple[float, str, dict[str, Any]]] = OrderedDict()

    def add(self, key: str, receipt: dict[str, Any]) -> None:
        """Keeps a receipt for those who have the key of that name."""
        self._kept[receipt["id"]] = self._clock() + self._seconds, key, receipt
        while self._kept and (len(self._kept) > self._most or next(iter(self._kept.values()))[0] <= self._clock()):
            self._kept.popitem(last=False)

    def find(self, key: str, id: str) -> dict[str, Any] | None:
        """A receipt; None if there is none, it has expired, or it is somebody else's."""
        expires, owner, receipt = self._kept.get(id, (0.0, "", {}))
        return receipt if expires > self._clock() and owner == key else None
