"""Locks that are held while somebody works. The system takes them back when their process ends, however it ends.

    with hold(folder / "lock", f"{folder}: another run is working here."):
        ...

A number of a process in a file would not do: containers number their processes anew, under one host name.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from flexo.errors import InputError
from flexo.verbosity import warn

try:
    import fcntl
except ImportError:  # not on Windows
    fcntl = None  # type: ignore[assignment]

HELD = (errno.EAGAIN, errno.EACCES)
NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL)  # of file systems that have none


class NoLocksError(Exception):
    """The file system has no locks."""


@contextmanager
def hold(path: Path, busy: str = "") -> Iterator[None]:
    """Holds the lock file `path`, which is made and stays. Where there are no locks, a warning says so.

    Args:
        path: of the lock file, in a folder that is there.
        busy: what to say if another process has it; "": it is waited for.

    Raises:
        InputError: another process has it.
    """
    try:
        descriptor = take(path, wait=not busy)
    except NoLocksError:
        warn(f"{path.parent}: this file system has no locks. See to it that nothing else works here at the same time.")
        yield
        return
    if descriptor is None:
        raise InputError(busy)
    try:
        yield
    finally:
        os.close(descriptor)


def take(path: Path, wait: bool = False) -> int | None:
    """Locks a file, making it if need be; returns the descriptor that holds the lock until it is closed.

    None if another process has it. Raises `NoLocksError` where there are no locks.
    """
    if fcntl is None:
        raise NoLocksError
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)  # to write: NFS asks for that
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
            if os.fstat(descriptor).st_nlink:
                return descriptor
        except OSError as error:
            os.close(descriptor)
            if error.errno in HELD:
                return None
            if error.errno in NO_LOCKS:
                raise NoLocksError from None
            raise
        os.close(descriptor)  # whoever had it has removed it meanwhile: nobody else would find this one
