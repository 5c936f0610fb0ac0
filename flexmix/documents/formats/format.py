"""What a text format says of itself, and the beginning of a file, by which it is recognised."""

from __future__ import annotations

import codecs
import io
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from flexmix.documents.formats.unpacking import HEAD, SUFFIXES, BrokenContentError, Content, Stored, archive
from flexmix.documents.source import Damaged, Piece, Row, Source
from flexo.console import Advance
from flexo.errors import InputError

MARKS = {
    codecs.BOM_UTF8: "utf-8", codecs.BOM_UTF32_LE: "utf-32-le", codecs.BOM_UTF32_BE: "utf-32-be",
    codecs.BOM_UTF16_LE: "utf-16-le", codecs.BOM_UTF16_BE: "utf-16-be",
}  # fmt: skip  # a mark of UTF-32 begins like one of UTF-16, and so comes first
CONTROL = re.compile(r"[\x00-\x08\x0e-\x1a\x1c\x1d\x1f\x7f]")
CONTROLS = 0.01  # share of control characters above which content is no text
SEEN = 4096  # characters in which they are counted
NULLS = 1024  # bytes in which the zeros of UTF-16 without a mark are counted

Rows = Iterator[tuple[int, "Row | Damaged"]]
Range = tuple[int, int, int | None]  # bytes to read, first and last, as in `Piece`


@dataclass(frozen=True)
class Head:
    """The beginning of a file's content, unpacked."""

    name: str  # of the file, without folders
    data: bytes
    packed: tuple[str, ...] = ()
    encoding: str | None = None  # as given by the owner
    whole: bool = False  # whether there is no more content

    @property
    def suffix(self) -> str:
        """The last part of the name, in small letters, without that of a packing."""
        parts = self.name.lower().split(".")[1:]
        while parts and f".{parts[-1]}" in SUFFIXES:
            parts.pop()
        return f".{parts[-1]}" if parts else ""

    @cached_property
    def text(self) -> str:
        """The content as text, with U+FFFD for what is none."""
        encoding, mark = encoding_of(self.data, self.encoding)
        decoder = codecs.getincrementaldecoder(encoding)(errors="replace")
        return decoder.decode(self.data[mark:], final=self.whole)

    @cached_property
    def is_text(self) -> bool:
        """Whether it may be text, in UTF-8 or not: other content is full of control characters."""
        seen = self.text[:SEEN]
        return len(CONTROL.findall(seen)) <= CONTROLS * len(seen)


@dataclass(frozen=True)
class Format:
    """A form in which documents come."""

    name: str
    suffixes: tuple[str, ...]  # of names; they decide where the content leaves it open
    recognise: Callable[[Head, Source], bool]
    cut: Callable[[Stored, Head, Source, int], Iterator[Range]]  # into pieces of about so many bytes
    read: Callable[[Stored, Source, Piece, Advance], Rows]  # rows with their numbers; those of JSON lines from `first`
    columns: Callable[[Stored, Head, Source], list[str]]  # as far as the beginning shows them
    unit: str = "line"  # what the numbers count


def whole(stored: Stored, _head: Head, _source: Source, _task_bytes: int) -> Iterator[Range]:
    """For formats that are read from end to end."""
    yield size_of(stored), 0, None


def size_of(stored: Stored) -> int:
    """Bytes on disk."""
    if stored.member is None:
        return stored.path.stat().st_size
    return archive(stored.path).getinfo(stored.member).compress_size


def encoding_of(data: bytes, given: str | None = None) -> tuple[str, int]:
    """The encoding of text that begins so, and the bytes of its mark: by the mark, by the zeros in it, or as given.

    Raises `InputError` for a name that is no encoding.
    """
    for mark, encoding in MARKS.items():
        if data.startswith(mark):
            return encoding, len(mark)
    even, odd = data[:NULLS:2], data[1:NULLS:2]
    if len(odd) > 1 and given is None:
        for encoding, zeros, others in (("utf-16-le", odd, even), ("utf-16-be", even, odd)):
            if zeros.count(0) > 0.9 * len(zeros) and others.count(0) < 0.1 * len(others):
                return encoding, 0
    try:
        found = codecs.lookup(given or "utf-8")
    except LookupError:
        found = None
    if found is None or not getattr(found, "_is_text_encoding", True):  # as of base64
        raise InputError(f"--encoding {given}: there is no such encoding. Write utf-8, cp1252, gb18030, ...")
    return found.name, 0


def as_text(content: Content, given: str | None) -> io.BufferedReader:
    """The content as UTF-8 without a mark, whatever it was. Its own errors are left in UTF-8."""
    encoding, mark = encoding_of(content.head, given)
    content.stream.read(mark)
    if encoding == "utf-8":
        return content.stream
    return io.BufferedReader(_Recoded(content.stream, encoding), HEAD)


class _Recoded(io.RawIOBase):
    """Text of another encoding as UTF-8."""

    def __init__(self, stream: io.BufferedReader, encoding: str) -> None:
        self._stream, self._encoding, self._pending = stream, encoding, b""
        self._decoder = codecs.getincrementaldecoder(encoding)("strict")

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        while not self._pending:
            data = self._stream.read(HEAD)
            try:
                self._pending = self._decoder.decode(data, final=not data).encode("utf-8")
            except UnicodeError as error:
                remedy = "Copy the file again, or give its encoding with --encoding."
                raise BrokenContentError(f"not {self._encoding}", error, remedy=remedy) from None
            if not data:
                break
        count = min(len(buffer), len(self._pending))
        buffer[:count] = self._pending[:count]
        self._pending = self._pending[count:]
        return count
