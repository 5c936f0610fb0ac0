"""How much a key may ask: requests in a minute, tokens in a day, requests at once. Counts are in memory alone."""

from __future__ import annotations

import time
from collections import defaultdict, deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from serving.access.errors import RequestError
from serving.access.keys import Key

MINUTE, DAY = 60.0, 86400.0


class Limits:
    """Counts by key. Belongs to one event loop."""

    def __init__(self, clock: Callable[[], float] = time.time) -> None:
        self._clock = clock
        self._asked: dict[str, deque[float]] = defaultdict(deque)
        self._running: dict[str, int] = defaultdict(int)
        self._tokens: dict[str, tuple[float, int]] = {}  # the day, and tokens spent or reserved in it

    @contextmanager
    def running(self, key: Key) -> Iterator[None]:
        """The time of one request; raises `RequestError` 429 if it is one too many."""
        now, asked = self._clock(), self._asked[key.name]
        while asked and asked[0] <= now - MINUTE:
            asked.popleft()
        if len(asked) >= key.requests_per_minute:
            wait = int(asked[0] + MINUTE - now) + 1
            raise _too_many(f"{key.requests_per_minute} requests a minute", wait)
        if self._running[key.name] >= key.at_once:
            raise _too_many(f"{key.at_once} requests at once", 1)
        asked.append(now)
        self._running[key.name] += 1
        try:
            yield
        finally:
            self._running[key.name] -= 1

    def reserve(self, key: Key, tokens: int) -> Callable[[int], None]:
        """Takes the most tokens that a request can need; what is returned is told how many it did."""
        day = self._clock() // DAY
        spent = found[1] if (found := self._tokens.get(key.name)) and found[0] == day else 0
        if spent + tokens > key.tokens_per_day:
            wait = int((day + 1) * DAY - self._clock()) + 1
            raise _too_many(f"{key.tokens_per_day} tokens a day, {spent} of them spent", wait)
        self._tokens[key.name] = day, spent + tokens

        def settle(used: int) -> None:
            then, total = self._tokens[key.name]
            if then == day:
                self._tokens[key.name] = day, total - tokens + used

        return settle


def _too_many(limit: str, wait: int) -> RequestError:
    return RequestError(429, f"this key is allowed {limit}. Try again in {wait} s.", code="rate_limit", wait=wait)
