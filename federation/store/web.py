"""A store that is read over plain HTTP or HTTPS. What is read is verified anyway, so HTTP will do."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import NoReturn
from urllib.parse import quote

from federation.store.place import ANY, BUFFER, WAIT, NotThereError, Place, StoreError, watched


class WebPlace(Place):
    def __init__(self, url: str) -> None:
        import urllib3

        self.url = url.rstrip("/")
        self._pool = urllib3.PoolManager(
            timeout=urllib3.Timeout(WAIT), retries=urllib3.Retry(3, backoff_factor=0.2, status=0), maxsize=8
        )

    def chunks(self, name: str, start: int = 0) -> Iterator[bytes]:
        import urllib3

        headers = {"Accept-Encoding": "identity"} | ({"Range": f"bytes={start}-"} if start else {})
        try:
            with self._pool.request("GET", self._at(name), headers=headers, preload_content=False) as answer:
                if answer.status in (403, 404, 410):
                    raise NotThereError(f"{self._at(name)}: no such file in this store.")
                if answer.status == 416:  # nothing from there on
                    return
                if answer.status not in (200, 206):
                    raise StoreError(f"{self._at(name)}: the server answers {answer.status}. Try again later.")
                skip = start if answer.status == 200 else 0  # a server that knows no ranges
                read = iter(partial(answer.read1, BUFFER, decode_content=False), b"")
                for chunk in watched(read, self._at(name), ANY):  # what is skipped has to arrive in time, too
                    if kept := chunk[skip:]:
                        yield kept
                    skip = max(0, skip - len(chunk))
        except urllib3.exceptions.HTTPError as error:
            raise StoreError(
                f"{self._at(name)}: cannot be fetched ({type(error).__name__}). Is the server up? Try again; what has "
                "arrived of a large file is kept."
            ) from None

    def names(self, folder: str) -> list[str] | None:
        return None

    def size(self, name: str) -> int | None:
        import urllib3

        try:
            answer = self._pool.request("HEAD", self._at(name))
        except urllib3.exceptions.HTTPError as error:
            raise StoreError(f"{self._at(name)}: cannot be asked for ({type(error).__name__}).") from None
        return int(answer.headers.get("Content-Length", 0)) if answer.status == 200 else None

    def _refuse(self, *_what: object, **_more: object) -> NoReturn:
        raise StoreError(
            f"{self.url}: a web address, which can only be read. Say where the store is written, for instance "
            "flexo-federation join URL --root root.json --write sftp://you@host/path"
        )

    create = replace = upload = move = remove = _refuse

    def _at(self, name: str) -> str:
        return f"{self.url}/{quote(name)}"
