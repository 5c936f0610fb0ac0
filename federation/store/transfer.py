"""Files of any size to and from a store: in a small buffer, hashed on the way, going on after an interruption."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

from federation.store.place import BUFFER, Advance, NotThereError, Place, StoreError, watched
from flexo.atomic_files import CHUNK, FULL, sha256_file
from flexo.errors import InputError

INCOMING = "incoming"  # the folder of a store in which uploads grow, and which nobody reads


def holds(place: Place, name: str, length: int, sha256: str) -> bool:
    """Whether a store has a file and gives it back as it should be; reads it."""
    if place.size(name) != length:
        return False
    digest = hashlib.sha256()
    for chunk in watched(place.chunks(name), f"{place.url}: {name}", length):
        digest.update(chunk)
    return digest.hexdigest() == sha256


def send(
    place: Place,
    incoming: str,
    source: Path,
    stored_as: Callable[[str], str],
    check: Callable[[], None] = lambda: None,
    advance: Advance = lambda _amount: None,
) -> str:
    """Uploads a file while it is hashed and checked, all three at once, and returns its sha256.

    Args:
        place: the store.
        incoming: a name for this file and no other, under which an interrupted upload goes on.
        source: the file.
        stored_as: its name in the store, by its sha256; it appears there whole.
        check: raises if the file is not to be sent; it ends an upload that has begun, and nothing is left of that.
        advance: told the bytes that were sent.
    """
    before, name = source.stat(), f"{INCOMING}/{incoming}"
    with ThreadPoolExecutor(2) as others:
        hashed, checked = others.submit(sha256_file, source), others.submit(check)

        def sent(amount: float) -> None:
            if checked.done():
                checked.result()
            advance(amount)

        try:
            place.upload(name, source, sent)
            checked.result()
        except BaseException:
            if checked.done() and checked.exception():
                place.remove(name)
            raise
        sha256 = hashed.result()
    if (after := source.stat()).st_mtime_ns != before.st_mtime_ns or after.st_size != before.st_size:
        place.remove(name)
        raise InputError(f"{source}: was written to while it was sent. Wait until it is finished, then send it again.")
    final = stored_as(sha256)
    with suppress(NotThereError):  # somebody with the same file was faster
        place.move(name, final)
    if (found := place.size(final)) != before.st_size:
        raise StoreError(
            f"{place.url}: {final} has {found} bytes after {before.st_size} were written. The store lost a part; run "
            "it again."
        )
    return sha256


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
