"""JSON lines, plain or compressed, one object at a time in constant memory, with an exact word on what is wrong where.

datatrove's own reader skips lines that are no JSON and documents without text, and counts neither; an owner would never
learn what was lost. Here the first goes no further and the second is counted by the caller.
"""

from __future__ import annotations

import gzip
import io
import json
import zlib
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import IO, Any

import zstandard

from flexo.console import Advance
from flexo.errors import InputError

READ = 1 << 14  # bytes of compressed input at once; zstd may make a thousand times as many of them


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


def read_rows(
    path: Path, first: int = 0, last: int | None = None, advance: Advance | None = None
) -> Iterator[tuple[int, Any]]:
    """The values of a JSON lines file, in order, each with its line counted from `first`; blank lines are passed over.

    Args:
        path: plain, or compressed as its name says (`.gz`, `.zst`).
        first, last: only lines that start at these bytes [first, last) of a plain file.
        advance: told how many bytes of the file were read.

    Raises:
        InputError: damaged compression, text that is not UTF-8, a line that is not JSON; with file, line, and for
            damaged compression how far into the file.
    """
    number, size, told = 0, path.stat().st_size, first
    with ExitStack() as stack:
        raw = stack.enter_context(path.open("rb"))
        lines: Any = raw
        if path.suffix == ".gz":
            lines = stack.enter_context(gzip.GzipFile(fileobj=raw))
        elif path.suffix == ".zst":
            lines = stack.enter_context(io.BufferedReader(ZstdFile(raw), 1 << 20))
        elif first:
            raw.seek(first - 1)
            raw.readline()  # the rest of the line before; a line that starts at `first` is ours
        try:
            while last is None or raw.tell() < last:
                if not (line := lines.readline()):
                    break
                number += 1
                if not line.isspace():
                    yield number, _parse(line, path, number, first)
                if advance and (number % 64 == 0 or len(line) > 1 << 16):
                    advance(raw.tell() - told)
                    told = raw.tell()
        except (gzip.BadGzipFile, zlib.error, zstandard.ZstdError, EOFError) as error:
            kind = "gzip" if path.suffix == ".gz" else "zstd"
            raise InputError(
                f"{path}: damaged {kind} after line {number} ({error}), {raw.tell():,} bytes into a file of {size:,}. "
                "Copy the file again."
            ) from None
        if advance:
            advance(min(raw.tell(), size if last is None else last) - told)


def text_of(row: object, column: str, where: Callable[[], str]) -> str:
    """The text under `column`; raises `InputError` with the columns there are, or with the type found."""
    if not isinstance(row, dict) or not isinstance(text := row.get(column), str):
        raise InputError(f"{where()}: {_no_text(row, column)}")
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        raise InputError(f"{where()}: the text holds half of a surrogate pair, which is no character.") from None
    return text


def line_of(path: Path, offset: int, number: int) -> int:
    """The number in the whole file of line `number` after byte `offset`."""
    if not offset:
        return number
    before = 0
    with path.open("rb") as file:
        while offset > 0 and (data := file.read(min(offset, 1 << 20))):
            before += data.count(b"\n")
            offset -= len(data)
    return before + (0 if data.endswith(b"\n") else 1) + number


def not_utf8(error: UnicodeDecodeError, where: str) -> InputError:
    """What is said of bytes that are no UTF-8; `where` names file and line."""
    column = error.start - error.object.rfind(b"\n", 0, error.start)
    return InputError(
        f"{where}: not UTF-8 (byte {error.object[error.start]:#04x} at column {column}). "
        "Convert the file first, for example with iconv -t utf-8."
    )


def _parse(line: bytes, path: Path, number: int, first: int) -> Any:
    try:
        return json.loads(line.decode("utf-8").rstrip())
    except UnicodeDecodeError as error:
        raise not_utf8(error, f"{path}: line {line_of(path, first, number)}") from None
    except (ValueError, RecursionError) as error:
        why = str(error).replace("line 1 ", "")  # it has seen one line only
        raise InputError(
            f'{path}: line {line_of(path, first, number)}: not JSON ({why}). Expected one {{"text": "..."}} a line.'
        ) from None


def _no_text(row: object, column: str) -> str:
    if not isinstance(row, dict):
        return f"{type(row).__name__}, expected an object with the column {column!r}."
    if column not in row:
        return f"no column {column!r} (found {', '.join(map(repr, sorted(row)[:12])) or 'none'})."
    return f"the column {column!r} holds {type(row[column]).__name__}, expected text."
