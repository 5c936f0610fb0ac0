"""Folders that are made once and kept: downloaded documents, token shards."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from flexo.atomic_files import new_folder
from flexo.errors import InputError


def keep(folder: Path, fill: Callable[[Path], None]) -> None:
    """Makes `folder` with `fill` unless it is there. Of several processes that try, the first to finish wins."""
    if folder.is_dir():
        return
    try:
        with new_folder(folder) as partial:
            fill(partial)
    except InputError:
        if not folder.is_dir():
            raise
