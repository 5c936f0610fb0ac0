"""Files of any size to and from a store: in a small buffer, hashed on the way, going on after an interruption."""

from __future__ import annotations

import hashlib
import os
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

from federation.store.place import BUFFER, Advance, Place, StoreError, watched
from flexo.atomic_files import CHUNK, FULL
from flexo.errors import InputError


def send(place: Place, name: str, source: Path, sha256: str, advance: Advance = lambda _amount: None) -> bool:
    """Copies `source` to the store as `name`, unless it is there already; says whether it had to.

    A file of that name is read back: one that was damaged or exchanged there is sent again.
    """
    length = source.stat().st_size
    if place.size(name) == length:
        digest = hashlib.sha256()
        for chunk in watched(place.chunks(name), f"{place.url}: {name}", length):
            digest.update(chunk)
        if digest.hexdigest() == sha256:
            advance(length)
            return False
        place.remove(name)
    place.upload(name, source, advance)
    if (found := place.size(name)) != length:
        raise StoreError(
            f"{place.url}: {name} has {found} bytes after {length} were written. The store lost a part; run it again."
        )
    return True


def fetch(
    place: Place, name: str, target: Path, length: int, sha256: str, advance: Advance = lambda _amount: None
) -> None:
    """Makes `target` of a file of the store, whole and only if it has this length and sha256.

    What has arrived before an interruption is kept beside it, as a hidden file, and hashed again when it goes on.
    """
    partial = target.with_name(f".{target.name}.partial")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        digest = _arrived(place, name, partial, length, advance)
        size = partial.stat().st_size
        if (size, digest) != (length, sha256):
            partial.unlink()
            raise StoreError(
                f"{place.url}: {name} has {size} bytes and sha256 {digest[:12]}, signed are {length} bytes and "
                f"{sha256[:12]}. The file was exchanged or damaged on the store; its owner can send it again."
            )
        partial.replace(target)
    except OSError as error:
        if error.errno not in FULL:
            raise
        raise InputError(
            f"{target}: the disk is full. What has arrived is kept; free some room, then run it again."
        ) from error


def _arrived(place: Place, name: str, partial: Path, length: int, advance: Advance) -> str:
    """The sha256 of the file when all of it is in `partial`."""
    digest = hashlib.sha256()
    with partial.open("a+b", 0) as file, ThreadPoolExecutor(1) as hasher:  # hashing lets other threads run
        if file.seek(0, os.SEEK_END) > length:
            file.truncate(0)
        file.seek(0)
        start = 0
        while chunk := file.read(CHUNK):
            digest.update(chunk)
            start += len(chunk)
        advance(start)
        if start < length:
            before: Future[None] | None = None
            for chunk in watched(place.chunks(name, start), f"{place.url}: {name}", length - start):
                if before:
                    before.result()
                before = hasher.submit(digest.update, chunk)
                _write_all(file.fileno(), chunk)
                advance(len(chunk))
            if before:
                before.result()
        os.fsync(file.fileno())
    return digest.hexdigest()


def _write_all(descriptor: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(descriptor, view[:BUFFER]) :]
