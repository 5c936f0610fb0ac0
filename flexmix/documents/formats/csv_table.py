"""CSV: a table as databases and spreadsheets export it, cells separated by a comma, semicolon, tab or bar.

The first line names the columns. A cell in double quotes may hold separators, line ends, and quotes written twice. A
table whose cells begin with quotes that do not end is read with quotes as ordinary signs, as many TSV files are meant.
"""

from __future__ import annotations

import csv
import io
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from flexmix.documents.formats.format import Format, Head, Range, Rows, as_text, whole
from flexmix.documents.formats.unpacking import Stored
from flexmix.documents.source import Damaged, Piece, Source
from flexmix.documents.source.columns import refuse_missing, text_column
from flexo.console import Advance
from flexo.errors import InputError

SEPARATORS = (",", "\t", ";", "|")
NAMES = {"tab": "\t", "\\t": "\t", "comma": ",", "semicolon": ";", "bar": "|", "space": " "}
SUFFIXES = {".csv": ",", ".tsv": "\t", ".tab": "\t", ".psv": "|"}
EXCEL = "sep="  # a line that Excel writes and reads before the names of the columns
LINE_END = re.compile(r"\r\n|\n|\r")
OFTEN = 64  # rows between two reports of progress


@dataclass(frozen=True)
class Dialect:
    """How the cells of a table are separated, and what the columns are called."""

    separator: str
    quoted: bool
    names: tuple[str, ...]

    def reader(self, lines: Iterator[str]) -> Any:
        """The module's reader, with lines counted in `line_num`. Cells of any length are allowed."""
        csv.field_size_limit(sys.maxsize)
        if not self.quoted:
            return csv.reader(lines, delimiter=self.separator, quoting=csv.QUOTE_NONE, strict=True)
        return csv.reader(lines, delimiter=self.separator, strict=True)


def read(stored: Stored, source: Source, piece: Piece, advance: Advance) -> Rows:
    """The rows, numbered by the line on which each begins. An empty cell is no value."""
    with stored.open() as content:
        dialect = dialect_of(Head(stored.name, content.head, encoding=source.encoding), source)
        # bytes that are no UTF-8 become halves of surrogate pairs, which are refused with their row
        text = io.TextIOWrapper(
            as_text(content, source.encoding), encoding="utf-8", errors="surrogateescape", newline=""
        )
        skipped = _skip_excel(text)
        rows, told, header, number = dialect.reader(skipped), 0, True, 0
        while True:
            number = rows.line_num + 1
            try:
                cells = next(rows, None)
            except csv.Error as error:
                yield number, _broken(str(error), rows.line_num + 1 - number)
                continue
            if cells is None:
                break
            if header or not cells:
                header = False if cells else header
                continue
            yield number, _row(dialect, cells)
            if number % OFTEN == 0:
                told, before = content.told(), told
                advance(told - before)
        advance(piece.size - told)


def cut(stored: Stored, head: Head, source: Source, task_bytes: int) -> Iterator[Range]:
    """One piece, for a line end may be inside a cell; refuses a table without the columns asked for."""
    if head.text.strip():
        refuse_missing(dialect_of(head, source).names, source, str(stored))
    yield from whole(stored, head, source, task_bytes)


def dialect_of(head: Head, source: Source) -> Dialect:
    """The separator under which the first line names the column of text, or most columns; raises `InputError`."""
    separator = source.separator
    if separator is not None:
        separator = NAMES.get(separator, separator)
        if len(separator) != 1 or separator in '"\r\n':
            raise InputError(f"--separator {source.separator}: expected a single character, or {', '.join(NAMES)}.")
    lines = io.StringIO(head.text, newline="")
    line = lines.readline()
    if line.startswith(EXCEL):
        separator = separator or line[len(EXCEL) :][:1]
    else:
        lines.seek(0)
    start = lines.tell()
    candidates = []
    for candidate in [separator] if separator else [SUFFIXES.get(head.suffix, ","), *SEPARATORS]:
        lines.seek(start)
        names = next(iter(_rows(Dialect(candidate, True, ()), lines)), [])
        candidates.append(Dialect(candidate, True, tuple(name.strip() for name in names)))
    best = max(candidates, key=lambda made: (text_column(made.names, source) in made.names, len(made.names)))
    return Dialect(best.separator, _are_quoted(best, head), best.names)


def recognise(head: Head, source: Source) -> bool:
    """By the name; or by a first line that names the column of text among others, and rows of as many cells."""
    if not head.is_text or not head.text.strip():
        return head.suffix in SUFFIXES and not head.text.strip()
    if head.suffix in SUFFIXES:
        return True
    dialect = dialect_of(head, source)
    if len(dialect.names) < 2 or text_column(dialect.names, source) not in dialect.names:
        return False
    rows = list(_rows(dialect, io.StringIO(head.text, newline="")))
    complete = rows[1:] if head.whole else rows[1:-1]
    return bool(complete) and all(len(cells) == len(dialect.names) for cells in complete)


def _rows(dialect: Dialect, lines: io.StringIO) -> Iterator[list[str]]:
    """Rows as far as they can be read."""
    try:
        for cells in dialect.reader(_skip_excel(lines)):
            if cells:
                yield cells
    except csv.Error:
        return


def _skip_excel(lines: Any) -> Iterator[str]:
    first = next(lines, "")
    yield "\n" if first.startswith(EXCEL) else first
    yield from lines


def _are_quoted(dialect: Dialect, head: Head) -> bool:
    """Whether quotes enclose cells, as far as the beginning of a tab separated file shows.

    They do not where every line has as many cells as there are columns, and reading them so would break or join lines.
    """
    if dialect.separator != "\t":
        return True
    lines = [line for line in LINE_END.split(head.text) if line]
    if not all(line.count("\t") + 1 == len(dialect.names) for line in (lines if head.whole else lines[:-1])):
        return True
    rows = list(_rows(dialect, io.StringIO(head.text, newline="")))
    return len(rows) >= len(lines) - 1 and not any(LINE_END.search(cell) for cells in rows[:-1] for cell in cells)


def _row(dialect: Dialect, cells: list[str]) -> dict[str, str | None] | Damaged:
    if len(cells) != len(dialect.names):
        return Damaged(
            f"{len(cells)} cells, the first line names {len(dialect.names)} columns. Is a separator or a quote in the "
            "text that is not quoted?",
            dialect.separator.join(cells),
        )
    return {name: cell or None for name, cell in zip(dialect.names, cells, strict=True)}


def _broken(why: str, lines: int) -> Damaged:
    if "unexpected end" in why:
        return Damaged(
            f"a quote is opened here and never closed, up to the end of the file, {lines} lines further. A quote in a "
            "quoted cell is written twice.",
            lines=max(1, lines),
        )
    return Damaged(f"not CSV ({why}). A quote in a quoted cell is written twice.", lines=max(1, lines))


def _columns(_stored: Stored, head: Head, source: Source) -> list[str]:
    return list(dialect_of(head, source).names)


FORMAT = Format("CSV", tuple(SUFFIXES), recognise, cut, read, _columns)
