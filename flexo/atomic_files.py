"""Output that appears whole or not at all: work in a hidden neighbour, sync it, rename it into place.

    with new_folder(Path("model")) as partial:      # .model.partial-HOST-5f3a91c2 beside it
        ...                                         # an exception, Ctrl-C or a full disk removes it again

While it is worked on, `.model.partial-HOST-5f3a91c2.lock` is locked. A process killed outright leaves both behind; the
next run under that host name for the same target finds that it can lock the file, and removes both. Other machines,
whose locks may not reach this one, leave them alone, and so does everybody where the file system has no locks.
"""

from __future__ import annotations

import errno
import glob
import hashlib
import os
import platform
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from flexo.errors import InputError
from flexo.locks import NoLocksError, take

CHUNK = 1 << 20  # what stays in a core's cache between reading, hashing and writing
FULL = (errno.ENOSPC, errno.EDQUOT)
UNWRITABLE = (
    errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EISDIR, errno.ENOTEMPTY, errno.EEXIST, errno.EBUSY,
    errno.EXDEV, errno.ENAMETOOLONG, errno.ELOOP, errno.EFBIG, errno.EIO, errno.ESTALE,
)  # fmt: skip
NO_SYNC = (errno.EINVAL, errno.EOPNOTSUPP, errno.ENOSYS, errno.EBADF, errno.EACCES, errno.EPERM, errno.EISDIR)
LOCK = ".lock"  # behind the name of a hidden neighbour


@contextmanager
def new_folder(target: Path) -> Iterator[Path]:
    """Yields an empty folder that becomes `target` when the block ends without an exception.

    Raises `InputError` at once if `target` is not free or cannot be made, and if the disk fills up or cannot be written
    on the way.
    """
    refuse_occupied(target)
    with _partial(target) as (partial, final):
        partial.mkdir()  # a place where nothing can be made is refused here, before the work
        yield partial
        for path in (*partial.rglob("*"), partial):
            sync(path)
        partial.rename(final)  # takes the place of an empty folder; fails if something has appeared there meanwhile


@contextmanager
def new_file(target: Path, replace: bool = False) -> Iterator[Path]:
    """Yields a path to write; the file there becomes `target` when the block ends without an exception.

    Raises `InputError` at once if `target` exists and may not be replaced, and as `new_folder` does.
    """
    refuse_existing(target, replace)
    with _partial(target) as (partial, final):
        partial.touch()  # refused here as well; who writes it may want to make it anew, with permissions of its own
        partial.unlink()
        yield partial
        sync(partial)
        partial.replace(final)


def refuse_existing(target: Path, replace: bool = False) -> None:
    """Raises `InputError` if `target` is a folder, or a file that may not be replaced."""
    with _os_refusals(target):
        if target.is_dir():
            raise InputError(f"{target}: a folder stands where the output file should go. Choose another output.")
        if target.exists() and not replace:
            raise InputError(f"{target}: this file exists already. Choose another output or delete it first.")


def refuse_occupied(target: Path) -> None:
    """Raises `InputError` unless `target` is free: absent, or an empty folder that a finished one can replace."""
    with _os_refusals(target):
        if not target.exists():
            return
        if not target.is_dir():
            raise InputError(f"{target}: a file stands where the output folder should go. Choose another output.")
        if any(target.iterdir()):
            raise InputError(f"{target}: this folder is not empty. Choose another output or empty it first.")
        if target.is_mount() or target.samefile(Path.cwd()):
            raise InputError(
                f"{target}: a mount point or the current folder, which a finished folder cannot be renamed to. "
                "Name a new folder inside it."
            )


def sha256_file(path: Path) -> str:
    """The sha256 of a file's bytes, as hex."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(CHUNK):
            digest.update(chunk)
    return digest.hexdigest()


@contextmanager
def _partial(target: Path) -> Iterator[tuple[Path, Path]]:
    """Yields the hidden neighbour and the target itself, links resolved; parents made for a failure go away again."""
    if "\0" in str(target):
        raise InputError(f"{str(target)!r}: a name with a zero byte in it, which no disk takes. Choose another output.")
    final = Path(os.path.realpath(target))
    partial = partial_of(final)
    with _os_refusals(target):
        missing = [parent for parent in final.parents if not parent.exists()]
        try:
            final.parent.mkdir(parents=True, exist_ok=True)
            _remove_abandoned(final)
            with _locked(partial):
                yield partial, final
            sync(final.parent)
        finally:
            for parent in missing:
                with suppress(OSError):  # not empty, or never made
                    parent.rmdir()


@contextmanager
def _os_refusals(target: Path) -> Iterator[None]:
    """Turns the operating system's refusals to write `target` into an `InputError`."""
    try:
        yield
    except (OSError, RuntimeError) as raised:
        # torch.save raises a RuntimeError of its own when it closes a file that could not be written to
        error = raised if isinstance(raised, OSError) else raised.__context__
        if not isinstance(error, OSError):
            raise
        if error.errno in FULL:
            raise InputError(
                f"{target}: the disk is full. Nothing of it was kept; free some room or choose another disk."
            ) from error
        if error.errno in UNWRITABLE or (error.errno == errno.ENOENT and _on_the_way(error.filename, target)):
            at = f", at {error.filename}" if error.filename else ""
            raise InputError(f"{target}: cannot be written ({error.strerror}{at}). Choose another output.") from error
        raise raised


def _on_the_way(missing: object, target: Path) -> bool:
    """Whether what is missing is a parent of `target` or its hidden neighbour: as in /proc, where none can be made."""
    final = Path(os.path.realpath(target))
    if not isinstance(missing, str):
        return False
    return Path(missing) in final.parents or missing.startswith(str(final.with_name(_neighbour(final))))


def partial_of(target: Path) -> Path:
    """Where to work on `target`: a hidden neighbour, another one for each call."""
    return target.with_name(_neighbour(target) + secrets.token_hex(4))


def _neighbour(target: Path) -> str:
    """What the names of all hidden neighbours begin with that are made here."""
    return f".{target.name}.partial-{platform.node()}-"


@contextmanager
def _locked(partial: Path) -> Iterator[None]:
    """Shows others that somebody works on `partial`; removes it at the end."""
    lock = partial.with_name(partial.name + LOCK)
    descriptor = None
    try:
        with suppress(NoLocksError):
            descriptor = take(lock)
        yield
    finally:
        _remove(partial)
        with suppress(OSError):  # what was made is whole
            lock.unlink()
        if descriptor is not None:
            os.close(descriptor)


def _remove_abandoned(target: Path) -> None:
    """Removes the hidden neighbours of `target` that nobody works on any more."""
    for lock in target.parent.glob(glob.escape(_neighbour(target)) + "*" + LOCK):
        with suppress(NoLocksError, OSError):  # where it cannot be known, they stay
            if (descriptor := take(lock)) is not None:
                _remove(lock.with_name(lock.name.removesuffix(LOCK)))
                lock.unlink(missing_ok=True)
                os.close(descriptor)


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def sync(path: Path) -> None:
    """Waits until a file, or the names in a folder, are on the disk. Some file systems cannot be asked to."""
    try:
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
    except OSError as error:
        if error.errno not in NO_SYNC:
            raise
