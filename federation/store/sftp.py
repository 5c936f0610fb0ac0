"""A store on an SFTP server: `sftp://user@host:port/path`, with the keys and known hosts that ssh uses."""

from __future__ import annotations

import asyncio
import posixpath
import secrets
from collections.abc import Awaitable, Callable, Coroutine, Iterator
from concurrent.futures import Future
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from federation.store.place import BUFFER, WAIT, Advance, NotThereError, Place, StoreError, begin_at
from flexo.atomic_files import CHUNK

AHEAD = 4  # reads on the way, so that the line is never idle


class SftpPlace(Place):
    def __init__(self, url: str) -> None:
        try:
            import asyncssh
            from sshfs import SSHFileSystem
        except ImportError:
            raise StoreError(f"{url}: SFTP needs sshfs. Install it: pip install -c constraints.txt sshfs") from None
        parts = urlsplit(url)
        self.url, self._root = url.rstrip("/"), unquote(parts.path) or "."
        given = {"port": parts.port, "username": parts.username, "password": parts.password}
        options = {name: value for name, value in given.items() if value}
        try:  # sshfs trusts every host key unless it is told not to
            self._fs = SSHFileSystem(
                parts.hostname, known_hosts=(), timeout=WAIT, encryption_algs="^aes128-gcm@openssh.com", **options
            )  # GCM is the fastest, and by asyncssh's own order not the first
            self._sftp = self._run(self._fs.client.start_sftp_client)
        except (OSError, asyncssh.Error) as error:
            raise StoreError(
                f"{self.url}: no connection ({str(error)[:200] or type(error).__name__}). Does this work: "
                f"sftp {f'-P {parts.port} ' if parts.port else ''}"
                f"{parts.username + '@' if parts.username else ''}{parts.hostname}"
            ) from None

    def chunks(self, name: str, start: int = 0) -> Iterator[bytes]:
        with self._opened(name, self._at(name), "rb") as file:
            coming = [self._begin(file.read(CHUNK, start))]
            while coming and (chunk := self._answer(name, coming.pop(0))):
                start += len(chunk)
                while len(chunk) == CHUNK and len(coming) < AHEAD:
                    coming.append(self._begin(file.read(CHUNK, start + CHUNK * len(coming))))
                yield chunk

    def names(self, folder: str) -> list[str] | None:
        try:
            found = self._try(folder, lambda: self._sftp.listdir(self._at(folder)))
        except NotThereError:
            return []
        return sorted(name for name in found if not name.startswith("."))

    def size(self, name: str) -> int | None:
        with suppress(NotThereError):
            return int(self._try(name, lambda: self._sftp.stat(self._at(name))).size)
        return None

    def create(self, name: str, data: bytes) -> bool:
        written = self._written(name, data)
        try:  # plain rename, which refuses to overwrite; posix_rename does not
            self._try(name, lambda: self._sftp.rename(written, self._at(name)))
        except StoreError:
            with suppress(StoreError):
                self._try(name, lambda: self._sftp.remove(written))
            if self.size(name) is None:
                raise
            return False
        return True

    def replace(self, name: str, data: bytes) -> None:
        written = self._written(name, data)
        self._try(name, lambda: self._sftp.posix_rename(written, self._at(name)))

    def upload(self, name: str, source: Path, advance: Advance) -> None:
        self._folder_of(name)
        there = self.size(name) or 0
        with self._opened(name, self._at(name), "r+b" if there else "wb") as file:
            at = begin_at(source, there, lambda count, begin: self._try(name, partial(file.read, count, begin)))
            advance(at)
            coming: Future[Any] | None = None
            with source.open("rb") as local:
                local.seek(at)
                while (data := local.read(BUFFER)) or coming:  # two on the way, so that the line is never idle
                    before, coming = coming, self._begin(file.write(data, at)) if data else None
                    at += len(data)
                    if before:
                        advance(self._answer(name, before))
            self._try(name, lambda: file.truncate(at))
            self._sync(name, file)

    def move(self, name: str, to: str) -> None:
        self._folder_of(to)
        self._try(to, lambda: self._sftp.posix_rename(self._at(name), self._at(to)))

    def remove(self, name: str) -> None:
        with suppress(NotThereError):
            self._try(name, lambda: self._sftp.remove(self._at(name)))

    def _written(self, name: str, data: bytes) -> str:
        """The path of a hidden neighbour that holds `data`."""
        folder, base = posixpath.split(self._at(name))
        hidden = posixpath.join(folder, f".{base}.partial-{secrets.token_hex(8)}")
        self._folder_of(name)
        with self._opened(name, hidden, "wb") as file:
            self._try(name, lambda: file.write(data))
            self._sync(name, file)
        return hidden

    @contextmanager
    def _opened(self, name: str, path: str, mode: str) -> Iterator[Any]:
        file = self._try(name, lambda: self._sftp.open(path, mode))
        try:
            yield file
        except BaseException:
            with suppress(StoreError):  # what went wrong first is what is said
                self._try(name, file.close)
            raise
        self._try(name, file.close)

    def _sync(self, name: str, file: Any) -> None:
        from asyncssh.sftp import SFTPOpUnsupported

        async def synced() -> None:
            with suppress(SFTPOpUnsupported):  # a server without this extension of OpenSSH
                await file.fsync()

        self._try(name, synced, 20 * WAIT)

    def _folder_of(self, name: str) -> None:
        folder = posixpath.dirname(self._at(name))
        self._try(name, lambda: self._sftp.makedirs(folder, exist_ok=True))

    def _at(self, name: str) -> str:
        return posixpath.join(self._root, name)

    def _try(self, name: str, ask: Callable[[], Awaitable[Any]], most: float = WAIT) -> Any:
        """What the server answers; raises `NotThereError` and `StoreError` for its refusals."""
        import asyncssh
        from fsspec.asyn import FSTimeoutError

        try:
            return self._run(ask, most)
        except (asyncssh.SFTPNoSuchFile, asyncssh.SFTPNoSuchPath):
            raise NotThereError(f"{self.url}/{name}: no such file in this store.") from None
        except (TimeoutError, FSTimeoutError):
            raise StoreError(f"{self.url}/{name}: no answer in {most:.0f} seconds. Try again later.") from None
        except (asyncssh.Error, OSError) as error:
            raise StoreError(
                f"{self.url}/{name}: the server refuses ({str(error)[:200] or type(error).__name__}). Is its disk "
                "full, or may you not write there? Nothing half-written is visible; run it again."
            ) from None

    def _begin(self, asked: Coroutine[Any, Any, Any]) -> Future[Any]:
        """Asks the server for something large, without waiting for its answer."""
        return asyncio.run_coroutine_threadsafe(asked, self._fs.loop)

    def _answer(self, name: str, begun: Future[Any]) -> Any:
        return self._try(name, partial(asyncio.wrap_future, begun), most=4 * WAIT)

    def _run(self, ask: Callable[[], Awaitable[Any]], most: float = WAIT) -> Any:
        from fsspec.asyn import sync

        async def asked() -> Any:
            return await ask()

        return sync(self._fs.loop, asked, timeout=most)
