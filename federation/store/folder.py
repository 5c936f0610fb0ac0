"""A store that is a folder, on this machine or mounted."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

from federation.store.place import BUFFER, Advance, NotThereError, Place, StoreError, UnfitError, begin_at
from flexo.atomic_files import CHUNK, FULL, new_file, partial_of, sync


class FolderPlace(Place):
    near = True

    def __init__(self, folder: Path) -> None:
        self.folder, self.url = folder, str(folder)

    def chunks(self, name: str, start: int = 0) -> Iterator[bytes]:
        try:  # a pipe or a device would block or never end
            file = os.fdopen(os.open(self.folder / name, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC), "rb", 0)
        except (FileNotFoundError, NotADirectoryError):
            raise NotThereError(f"{self.folder / name}: no such file in this store.") from None
        except OSError as error:
            raise StoreError(f"{self.folder / name}: cannot be read ({error.strerror}).") from None
        with file:
            if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
                raise UnfitError(f"{self.folder / name}: not a plain file. The store was tampered with.")
            file.seek(start)
            while chunk := file.read(CHUNK):
                yield chunk

    def names(self, folder: str) -> list[str] | None:
        path = self.folder / folder
        return sorted(one.name for one in path.iterdir() if not one.name.startswith(".")) if path.is_dir() else []

    def size(self, name: str) -> int | None:
        path = self.folder / name
        return path.stat().st_size if path.is_file() else None

    def create(self, name: str, data: bytes) -> bool:
        final = self.folder / name
        with self._refusals(name):
            final.parent.mkdir(parents=True, exist_ok=True)
            hidden = partial_of(final)
            try:
                with hidden.open("wb") as file:
                    file.write(data)
                    file.flush()
                    os.fsync(file.fileno())
                os.link(hidden, final)  # fails if somebody was faster
            except FileExistsError:
                return False
            finally:
                hidden.unlink(missing_ok=True)
            sync(final.parent)
        return True

    def replace(self, name: str, data: bytes) -> None:
        with self._refusals(name), new_file(self.folder / name, replace=True) as hidden:
            hidden.write_bytes(data)

    def upload(self, name: str, source: Path, advance: Advance) -> None:
        path = self.folder / name
        with self._refusals(name):
            path.parent.mkdir(parents=True, exist_ok=True)
            # others write here, too, and may have put a link to one of our own files in the way
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o644)
            with os.fdopen(descriptor, "r+b", 0), source.open("rb", 0) as file:
                at = begin_at(source, os.fstat(descriptor).st_size, partial(os.pread, descriptor))
                advance(at)
                os.lseek(descriptor, at, os.SEEK_SET)
                while count := os.sendfile(descriptor, file.fileno(), at, BUFFER):
                    at += count
                    advance(count)
                os.ftruncate(descriptor, at)  # last: whoever sends the same file at the same time loses nothing
                os.fsync(descriptor)

    def move(self, name: str, to: str) -> None:
        final = self.folder / to
        with self._refusals(to):
            final.parent.mkdir(parents=True, exist_ok=True)
            try:
                (self.folder / name).replace(final)
            except FileNotFoundError:
                raise NotThereError(f"{self.folder / name}: no such file in this store.") from None
            sync(final.parent)

    def remove(self, name: str) -> None:
        with self._refusals(name):
            (self.folder / name).unlink(missing_ok=True)

    @contextmanager
    def _refusals(self, name: str) -> Iterator[None]:
        """Turns what the operating system says against writing into a `StoreError`."""
        try:
            yield
        except OSError as error:
            why = "the disk of the store is full" if error.errno in FULL else f"cannot be written ({error.strerror})"
            raise StoreError(
                f"{self.folder / name}: {why}. Nothing half-written is visible; make room and run it again."
            ) from error
