"""Watches what this process does while it reads a stranger's file: code run, files written, processes, network.

Python reports each of these as an audit event before it happens, whoever asks for it.
"""

from __future__ import annotations

import encodings.cp437  # noqa: F401 - zipfile's, imported when a name is not in UTF-8
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

RUNS = (
    "exec", "compile", "import", "marshal.loads", "pickle.find_class", "ctypes.dlopen", "os.system", "os.exec",
    "os.fork", "os.forkpty", "os.posix_spawn", "subprocess.Popen",
)  # fmt: skip
WRITES = (
    "os.remove", "os.rename", "os.mkdir", "os.rmdir", "os.link", "os.symlink", "os.truncate", "os.chmod", "os.chown",
    "os.utime", "shutil.", "tempfile.",
)  # fmt: skip
WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND

_told: list[Callable[[str], None]] = []


@contextmanager
def watched() -> Iterator[list[str]]:
    """Yields a list that fills with whatever is done inside the block beyond reading and computing."""
    if not _hooked:
        _hooked.append(True)
        sys.addaudithook(_hook)  # for good; it is asleep while nobody watches
    seen: list[str] = []
    _told.append(seen.append)
    try:
        yield seen
    finally:
        _told.pop()


_hooked: list[bool] = []


def _hook(event: str, arguments: tuple[Any, ...]) -> None:
    if not _told:
        return
    writes = event.startswith(WRITES) or (event == "open" and bool((arguments[2] or 0) & WRITING))
    if event in RUNS or event.startswith("socket.") or writes:
        _told[-1](f"{event} {str(arguments)[:200]}")
