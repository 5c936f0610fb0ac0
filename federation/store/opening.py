"""From a URL to the place that it stands for."""

from __future__ import annotations

from pathlib import Path

from federation.store.place import Place


def open_place(url: str) -> Place:
    """The place that a URL or a folder's name stands for.

    Folders, `sftp://user@host/path`, `http://` and `https://` (to read only), and whatever else fsspec knows, such as
    `s3://bucket/path` and `hf://datasets/owner/name`. Raises `StoreError` if there is no such kind of place here.
    """
    scheme = url.partition("://")[0] if "://" in url else "file"
    if scheme == "file":
        from federation.store.folder import FolderPlace

        return FolderPlace(Path(url.removeprefix("file://")))
    if scheme in ("http", "https"):
        from federation.store.web import WebPlace

        return WebPlace(url)
    if scheme in ("sftp", "ssh"):
        from federation.store.sftp import SftpPlace

        return SftpPlace(url)
    from federation.store.cloud import CloudPlace

    return CloudPlace(url)
