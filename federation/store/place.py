"""A place that holds files under names, and what every kind of place must do for a federation.

Nobody trusts a place: what is read is checked against signed metadata by the caller. What a place promises is that a
file appears whole or not at all, and that of several writers who create one name exactly one succeeds.
"""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from pathlib import Path

from flexo.errors import InputError

Advance = Callable[[float], None]
WAIT = 30.0  # seconds without a byte after which a place has failed
WINDOW = 20.0  # seconds over which the rate of a transfer is judged
LEAST_RATE = 2_000.0  # bytes per second, below which a transfer is given up
SMALL_FILE = 120.0  # seconds that a file of metadata may take
BUFFER = 4 << 20
ANY = 1 << 62  # bytes, more than there are
TAIL = 1 << 20  # bytes at the end of an interrupted upload that are compared before it goes on


class StoreError(InputError):
    """A store is unreachable, refuses to be written, or hands out files without end."""


class NotThereError(StoreError):
    """A store has no file of this name."""


class UnfitError(StoreError):
    """A store has something under a name that is larger than it may be, or no plain file."""


class Place(ABC):
    """Files under names like `metadata/3.targets.json`."""

    url: str  # as messages show it
    near = False  # whether reading is as cheap as reading a copy

    @abstractmethod
    def chunks(self, name: str, start: int = 0) -> Iterator[bytes]:
        """The bytes of a file from `start` on, each piece as soon as it arrives; raises `NotThereError`."""

    @abstractmethod
    def names(self, folder: str) -> list[str] | None:
        """The names in a folder, hidden ones left out; None where a place cannot list."""

    @abstractmethod
    def size(self, name: str) -> int | None:
        """The bytes of a file, None if there is none."""

    @abstractmethod
    def create(self, name: str, data: bytes) -> bool:
        """Makes a file, whole and only if there is none of its name; says whether it did."""

    @abstractmethod
    def replace(self, name: str, data: bytes) -> None:
        """Makes a file, whole, in the place of one that may be there."""

    @abstractmethod
    def upload(self, name: str, source: Path, advance: Advance) -> None:
        """Copies a file of any size to a name that nobody reads yet; goes on where an interrupted upload ended."""

    @abstractmethod
    def move(self, name: str, to: str) -> None:
        """Gives a file another name, in the place of one that may be there; raises `NotThereError`."""

    @abstractmethod
    def remove(self, name: str) -> None:
        """Removes a file if it is there."""

    def read(self, name: str, most: int) -> bytes:
        """A whole small file; raises `StoreError` for more than `most` bytes, or for one that takes minutes."""
        found = bytearray()
        for chunk in watched(self.chunks(name), f"{self.url}: {name}", most, SMALL_FILE):
            found += chunk
        return bytes(found)


def begin_at(source: Path, there: int, read: Callable[[int, int], bytes]) -> int:
    """The byte at which an upload of `source` goes on, of which `there` bytes arrived before an interruption.

    `read(count, at)` gives back what has arrived, of which the last MB is compared; all else is compared by whoever
    fetches the file.
    """
    there = min(there, source.stat().st_size)
    begin = max(0, there - TAIL)
    with source.open("rb") as file:
        file.seek(begin)
        return there if there and file.read(there - begin) == read(there - begin, begin) else 0


def watched(chunks: Iterator[bytes], what: str, most: int, seconds: float | None = None) -> Iterator[bytes]:
    """The same chunks, until they are more than `most` bytes, drip in too slowly, or take more than `seconds`."""
    began = window = time.monotonic()
    total = since = 0
    for chunk in chunks:
        total, since, now = total + len(chunk), since + len(chunk), time.monotonic()
        if total > most:
            raise UnfitError(f"{what}: more than the {most} bytes that it may have. The store hands out another file.")
        if seconds and now - began > seconds:
            raise StoreError(f"{what}: not complete after {seconds:.0f} seconds. The store is too slow; try another.")
        if now - window > WINDOW:
            if since < LEAST_RATE * (now - window):
                raise StoreError(
                    f"{what}: {since} bytes in {now - window:.0f} seconds, expected {LEAST_RATE / 1000:g} kB/s or "
                    "more. The store holds the file back; try again, or another way to it."
                )
            window, since = now, 0
        yield chunk
