"""JSON lines: one object a line, read one at a time in constant memory, with an exact word on what is wrong where.

datatrove's own reader skips lines that are no JSON and documents without text, and counts neither; an owner would never
learn what was lost. Here the first is refused or set aside and the second is counted by the caller.
"""

from __future__ import annotations

import codecs
import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from flexmix.documents.formats.format import Format, Head, Range, Rows, as_text, encoding_of, size_of, whole
from flexmix.documents.formats.json_text import LINES, UniqueKeys, kind_of
from flexmix.documents.formats.unpacking import Content, Stored
from flexmix.documents.source import Damaged, Piece, Source
from flexo.console import Advance

OFTEN = 64  # lines between two reports of progress
LONG = 1 << 16  # a line after which it is reported at once
CANDIDATES = ("cp1252", "cp1251", "gb18030", "shift_jis")  # in which a reader may know what bytes were meant


def read(stored: Stored, source: Source, piece: Piece, advance: Advance) -> Rows:
    """The values of the lines that start at bytes [first, last) of a file; blank lines are passed over."""
    number, told, keys = 0, piece.first, UniqueKeys()
    with stored.open() as content:
        lines = _lines(content, source, piece.first)
        while piece.last is None or content.told() < piece.last:
            if not (line := lines.readline()):
                break
            number += 1
            if not line.isspace():
                yield number, _value(line, keys)
            if number % OFTEN == 0 or len(line) > LONG:
                told, before = content.told(), told
                advance(told - before)
        advance(min(content.told(), piece.first + piece.size) - told)


def cut(stored: Stored, head: Head, source: Source, task_bytes: int) -> Iterator[Range]:
    """Ranges of bytes; a file that is packed or of another encoding or line end is read from end to end."""
    if head.packed or encoding_of(head.data, source.encoding)[0] != "utf-8" or _ends_in_cr(head.data):
        yield from whole(stored, head, source, task_bytes)
        return
    size = size_of(stored)
    for first in range(0, max(1, size), task_bytes):
        last = min(first + task_bytes, size)
        yield last - first, first, last


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


def not_utf8(data: bytes, error: UnicodeDecodeError) -> Damaged:
    """What is said of a line that is no UTF-8."""
    first = data.rfind(b"\n", 0, error.start) + 1
    bad = data[error.start]
    around = data[max(first, error.start - 8) : error.start + 8].split(b"\n")[0]
    readings = []
    for encoding in CANDIDATES:
        try:
            readings.append(f"{around.decode(encoding)!r} in {encoding}")
        except UnicodeDecodeError:
            continue
    as_others = f" It would be {', '.join(readings)}." if readings else ""
    return Damaged(
        f"not UTF-8 (byte {bad:#04x} at column {error.start - first + 1}).{as_others} If the whole file is in another "
        "encoding, name it: flexo-data prepare --encoding NAME.",
        data.decode("utf-8", "backslashreplace"),
    )


def _lines(content: Content, source: Source, first: int) -> io.BufferedReader:
    stream = content.stream
    if first:
        stream.seek(first - 1)
        stream.readline()  # the rest of the line before; a line that starts at `first` is ours
        return stream
    ends_in_cr = _ends_in_cr(content.head)
    text = as_text(content, source.encoding)
    return io.BufferedReader(_Translated(text), LONG) if ends_in_cr else text


def _ends_in_cr(head: bytes) -> bool:
    """Whether lines end as on an old Macintosh."""
    return b"\r" in head and b"\n" not in head


class _Translated(io.RawIOBase):
    """Text whose lines end in CR, with LF in its place."""

    def __init__(self, stream: io.BufferedReader) -> None:
        self._stream = stream

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        data = self._stream.read1(len(buffer))
        buffer[: len(data)] = data.replace(b"\r", b"\n")
        return len(data)


def _value(line: bytes, keys: UniqueKeys) -> Any:
    try:
        return keys.decode(line.decode("utf-8").rstrip())
    except UnicodeDecodeError as error:
        return not_utf8(line, error)
    except (ValueError, RecursionError) as error:
        keys.twice = None
        if line.startswith(codecs.BOM_UTF8):  # of a file that was appended to another
            return _value(line.removeprefix(codecs.BOM_UTF8), keys)
        return Damaged(_no_json(line, str(error)), line.decode("utf-8"))


def _no_json(line: bytes, why: str) -> str:
    if zeros := line.count(b"\0"):
        return (
            f"{zeros:,} zero bytes in it, as a write that was interrupted leaves them. Copy the file again, or remove "
            "the line."
        )
    why = why.replace("line 1 ", "")  # it has seen one line only
    end = "" if line.endswith((b"\n", b"\r")) else " The file ends in this line: it may have been cut off."
    return f'not JSON ({why}).{end} Expected one {{"text": "..."}} a line.'


def _columns(_stored: Stored, head: Head, _source: Source) -> list[str]:
    try:
        value = UniqueKeys().decode(head.text.lstrip().partition("\n")[0].rstrip())
    except (ValueError, RecursionError):
        return []
    return list(value) if isinstance(value, dict) else []


FORMAT = Format(
    "JSON lines", LINES, lambda head, source: kind_of(head, source) == "lines", cut, read, _columns
)  # fmt: skip
