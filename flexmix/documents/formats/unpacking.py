"""The content of a file, unpacked: gzip, zstd, bz2, xz or a member of a zip archive, by what the first bytes say.

with Stored(Path("export.jsonl")).open() as content:      # gzip inside, whatever the name says
    content.packed, content.head, content.stream.readline()
"""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import re
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import IO, Any

import zstandard

from flexo.errors import InputError

HEAD = 1 << 16  # bytes by which a file is recognised
READ = 1 << 14  # bytes of packed input at once; zstd may make a thousand times as many of them
LAYERS = 3  # a file may be packed more than once, by a server that packs what is packed
ZIP = (b"PK\x03\x04", b"PK\x05\x06", b"PK\x07\x08")
SUFFIXES = {".gz": "gzip", ".gzip": "gzip", ".zst": "zstd", ".zstd": "zstd", ".bz2": "bz2", ".xz": "xz"}


class BrokenContentError(Exception):
    """The content of a file ends or breaks in the middle.

    Args:
        what: "damaged gzip", "not JSON".
        why: what was found.
        at: bytes into the file on disk, where that is known.
        remedy: what to do.
    """

    def __init__(self, what: str, why: object, at: int | None = None, remedy: str = "Copy the file again.") -> None:
        super().__init__(what, why)
        self.what, self.why, self.at, self.remedy = what, str(why), at, remedy

    def said(self, where: str, after: str, size: int) -> str:
        """The message, of a file of so many bytes, after what could be read of it."""
        far = "" if self.at is None else f", {self.at:,} bytes into a file of {size:,}"
        return f"{where}: {self.what} {after} ({self.why}){far}. {self.remedy}"


@dataclass
class Content:
    """An open file: its unpacked bytes, and how far into the file on disk they have been read."""

    stream: io.BufferedReader
    packed: tuple[str, ...]  # outermost first
    told: Callable[[], int]

    @property
    def head(self) -> bytes:
        """The first bytes, before anything is read."""
        return self.stream.peek(HEAD)[:HEAD]


@dataclass(frozen=True)
class Stored:
    """A file on disk, or in a zip archive on disk."""

    path: Path
    member: str | None = None

    def __str__(self) -> str:
        return str(self.path) if self.member is None else f"{self.path}/{self.member}"

    @property
    def name(self) -> str:
        """Its own name."""
        return self.path.name if self.member is None else self.member.rstrip("/").rpartition("/")[2]

    @contextmanager
    def open(self) -> Iterator[Content]:
        """Its content, unpacked. Reading raises `BrokenContentError` where the packing is damaged.

        Raises:
            InputError: a member of an archive cannot be unpacked.
        """
        with ExitStack() as stack:
            packed: list[str] = []
            stream: io.BufferedReader
            told: Callable[[], int]
            if self.member is None:
                stream = io.BufferedReader(stack.enter_context(io.FileIO(self.path)), HEAD)
                told = stream.tell
            else:
                inner, told = _member(self)
                stream = _buffered("zip", stack.enter_context(inner), told)
                packed.append("zip")
            while len(packed) <= LAYERS and (name := packing_of(stream.peek(16))) is not None:
                stream = _buffered(name, OPEN[name](stream), told)
                packed.append(name)
            yield Content(stream, tuple(packed), told)


def packing_of(data: bytes) -> str | None:
    """What data that begins so is packed with, or None."""
    return next((name for name, magic in MAGIC.items() if magic.match(data)), None)


class ZstdFile(io.RawIOBase):
    """The content of a .zst file of one or more frames; unlike the library's reader it notices a missing end."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file, self._pending, self._rest = file, memoryview(b""), b""
        self._frame: zstandard.ZstdDecompressionObj | None = None

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        while not self._pending and (data := self._rest or self._file.read(READ)):
            self._frame = self._frame or zstandard.ZstdDecompressor(max_window_size=1 << 31).decompressobj()
            self._pending = memoryview(self._frame.decompress(data))
            self._rest = self._frame.unused_data if self._frame.eof else b""
            if self._frame.eof:
                self._frame = None
        if not self._pending and self._frame is not None:
            raise EOFError("the file ends in the middle of a frame")
        count = min(len(buffer), len(self._pending))
        buffer[:count] = self._pending[:count]
        self._pending = self._pending[count:]
        return count


MAGIC = {
    "gzip": re.compile(rb"\x1f\x8b\x08"),
    "zstd": re.compile(rb"\x28\xb5\x2f\xfd"),
    "bz2": re.compile(rb"BZh[1-9](1AY&SY|\x17rE8P\x90)"),
    "xz": re.compile(rb"\xfd7zXZ\x00"),
}
OPEN: dict[str, Callable[[IO[bytes]], Any]] = {
    "gzip": lambda file: gzip.GzipFile(fileobj=file), "zstd": ZstdFile, "bz2": bz2.BZ2File, "xz": lzma.LZMAFile,
}  # fmt: skip
DAMAGE = (
    gzip.BadGzipFile, zlib.error, zstandard.ZstdError, lzma.LZMAError, zipfile.BadZipFile, EOFError, ValueError,
)  # fmt: skip


class _Unpacking(io.RawIOBase):
    """What comes out of an unpacker, with one kind of error for all of them. A read fills the buffer if it can."""

    def __init__(self, name: str, inner: Any, told: Callable[[], int]) -> None:
        self._name, self._told = name, told
        self._read = getattr(inner, "read1", inner.read)

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        filled = 0
        try:
            while filled < len(buffer) and (data := self._read(len(buffer) - filled)):
                buffer[filled : filled + len(data)] = data
                filled += len(data)
        except DAMAGE as error:
            return self._broken(filled, error)
        except OSError as error:
            if error.errno is not None:
                raise
            return self._broken(filled, error)  # bz2's way to say that its data are damaged
        return filled

    def _broken(self, filled: int, error: Exception) -> int:
        """What came before the damage is given out first; the next read meets the damage again."""
        if not filled:
            raise BrokenContentError(f"damaged {self._name}", error, self._told()) from None
        self._read = _raises(error)
        return filled


def _raises(error: Exception) -> Callable[[int], bytes]:
    def read(_size: int) -> bytes:
        raise error

    return read


def _buffered(name: str, inner: Any, told: Callable[[], int]) -> io.BufferedReader:
    return io.BufferedReader(_Unpacking(name, inner, told), HEAD)


@lru_cache(1)
def _archive(path: Path, _size: int, _time: int) -> zipfile.ZipFile:
    """An archive, kept open, for its directory is long; size and time say which version of it."""
    try:
        return zipfile.ZipFile(path)
    except zipfile.BadZipFile as error:
        raise InputError(f"{path}: damaged zip ({error}). Copy the file again.") from None


def archive(path: Path) -> zipfile.ZipFile:
    """A zip archive, opened; raises `InputError` if it is damaged."""
    found = path.stat()
    return _archive(path, found.st_size, found.st_mtime_ns)


def _member(stored: Stored) -> tuple[IO[bytes], Callable[[], int]]:
    """A member of an archive, opened, and how far into it its bytes have been read."""
    assert stored.member is not None
    opened = archive(stored.path)
    info = opened.getinfo(stored.member)
    try:
        file = opened.open(info)
    except (RuntimeError, NotImplementedError) as error:  # encrypted, or of a method that Python does not know
        why = "it is encrypted" if info.flag_bits & 1 else str(error)
        raise InputError(
            f"{stored}: cannot be unpacked ({why}). Unpack the archive first, for example with 7z x, and name the "
            "folder that comes out."
        ) from None
    at = opened.fp
    assert at is not None, "an archive that is open"
    return file, lambda: min(info.compress_size, max(0, at.tell() - info.header_offset))
