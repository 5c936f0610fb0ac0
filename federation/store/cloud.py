"""A store of any other kind that fsspec knows: `s3://`, `gs://`, `hf://`, `memory://`.

Such places show a file when it is complete. `create` is exclusive where the place can do that by itself (S3 and
memory); elsewhere it looks first, and two writers in the same instant are found out by reading back.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

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

        try:
            with self._fs.open(self._at(name), "rb", block_size=BUFFER) as file, ThreadPoolExecutor(1) as reader:
                file.seek(start)
                while chunk := reader.submit(file.read, BUFFER).result(WAIT):
                    yield chunk
        except FileNotFoundError:
            raise NotThereError(f"{self._at(name)}: no such file in this store.") from None
        except OSError as error:
            raise self._refusal(name, error) from None

    def names(self, folder: str) -> list[str] | None:
        try:
            found = self._fs.ls(self._at(folder), detail=False)
        except FileNotFoundError:
            return []
        return sorted(Path(path).name for path in found)

    def size(self, name: str) -> int | None:
        try:
            return int(self._fs.info(self._at(name))["size"])
        except FileNotFoundError:
            return None

    def create(self, name: str, data: bytes) -> bool:
        if self.size(name) is not None:
            return False
        try:
            self._fs.pipe_file(self._at(name), data, mode="create")
        except FileExistsError:
            return False
        except (TypeError, NotImplementedError, ValueError):  # a place that cannot; the last writer would win
            self._fs.pipe_file(self._at(name), data)
        except OSError as error:
            raise self._refusal(name, error) from None
        return self.read(name, len(data) + BUFFER) == data

    def replace(self, name: str, data: bytes) -> None:
        try:
            self._fs.pipe_file(self._at(name), data)
        except OSError as error:
            raise self._refusal(name, error) from None

    def upload(self, name: str, source: Path, advance: Advance) -> None:
        try:
            self._fs.put_file(str(source), self._at(name))
        except OSError as error:
            raise self._refusal(name, error) from None
        advance(source.stat().st_size)

    def move(self, name: str, to: str) -> None:
        try:
            self._fs.mv(self._at(name), self._at(to))
        except FileNotFoundError:
            raise NotThereError(f"{self._at(name)}: no such file in this store.") from None
        except OSError as error:
            raise self._refusal(to, error) from None

    def remove(self, name: str) -> None:
        if self.size(name) is not None:
            self._fs.rm_file(self._at(name))

    def _at(self, name: str) -> str:
        return f"{self._root}/{name}"

    def _refusal(self, name: str, error: OSError) -> StoreError:
        return StoreError(f"{self.url}/{name}: the store refuses ({str(error)[:200]}). Try again later.")
