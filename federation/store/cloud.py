"""A store of any other kind that fsspec knows: `s3://`, `gs://`, `hf://`, `memory://`.

Such places show a file when it is complete. `create` is exclusive where the place can do that by itself (S3 and
memory); elsewhere it looks first, and two writers in the same instant are found out by reading back.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from errno import EBUSY
from pathlib import Path
from typing import Any

from federation.store.place import BUFFER, WAIT, Advance, NotThereError, Place, StoreError


class CloudPlace(Place):
    def __init__(self, url: str) -> None:
        import fsspec

        self.url = url.rstrip("/")
        try:
            self._fs, root = fsspec.url_to_fs(self.url, use_listings_cache=False)
        except (ValueError, ImportError, OSError) as error:
            raise StoreError(f"{url}: no such kind of store here ({str(error)[:200]}).") from None
        self._root = root.rstrip("/")

    def chunks(self, name: str, start: int = 0) -> Iterator[bytes]:
        from concurrent.futures import ThreadPoolExecutor

        with self._refusals(name, missing=True), ThreadPoolExecutor(1) as reader:

            def begun(tries: int = 5) -> tuple[Any, bytes]:
                file = self._fs.open(self._at(name), "rb", block_size=BUFFER)
                file.seek(start)
                try:
                    return file, reader.submit(file.read, BUFFER).result(WAIT)
                except OSError as error:
                    file.close()
                    if error.errno != EBUSY or tries == 1:  # on S3: replaced since it was opened
                        raise
                return begun(tries - 1)

            file, chunk = begun()
            with file:
                while chunk:
                    yield chunk
                    chunk = reader.submit(file.read, BUFFER).result(WAIT)

    def names(self, folder: str) -> list[str] | None:
        with self._refusals(folder), suppress(FileNotFoundError):
            return sorted(Path(path).name for path in self._fs.ls(self._at(folder), detail=False))
        return []

    def size(self, name: str) -> int | None:
        with self._refusals(name), suppress(FileNotFoundError):
            return int(self._fs.info(self._at(name))["size"])
        return None

    def create(self, name: str, data: bytes) -> bool:
        if self.size(name) is not None:
            return False
        with self._refusals(name):
            try:
                self._fs.pipe_file(self._at(name), data, mode="create")
            except FileExistsError:
                return False
            except (TypeError, NotImplementedError, ValueError):  # a place that cannot; the last writer would win
                self._fs.pipe_file(self._at(name), data)
        return self.read(name, len(data) + BUFFER) == data

    def replace(self, name: str, data: bytes) -> None:
        with self._refusals(name):
            self._fs.pipe_file(self._at(name), data)

    def upload(self, name: str, source: Path, advance: Advance) -> None:
        with self._refusals(name):
            self._fs.put_file(str(source), self._at(name))
        advance(source.stat().st_size)

    def move(self, name: str, to: str) -> None:
        with self._refusals(name, missing=True):
            self._fs.mv(self._at(name), self._at(to))

    def remove(self, name: str) -> None:
        if self.size(name) is not None:
            with self._refusals(name):
                self._fs.rm_file(self._at(name))

    def _at(self, name: str) -> str:
        return f"{self._root}/{name}"

    @contextmanager
    def _refusals(self, name: str, missing: bool = False) -> Iterator[None]:
        """Turns what the place says into a `StoreError`, and that a file is `missing` into a `NotThereError`."""
        try:
            yield
        except Exception as error:  # each kind of place has errors of its own: botocore's are no OSError
            if missing and isinstance(error, FileNotFoundError):
                raise NotThereError(f"{self._at(name)}: no such file in this store.") from None
            said = str(error)[:200] or type(error).__name__
            raise StoreError(f"{self.url}/{name}: the store refuses ({said}). Try again later.") from error
