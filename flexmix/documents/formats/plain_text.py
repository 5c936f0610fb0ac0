"""Plain text: a file is a document."""

from __future__ import annotations

from flexmix.documents.formats.format import Format, Head, Rows, as_text, whole
from flexmix.documents.formats.json_lines import not_utf8
from flexmix.documents.formats.unpacking import Stored
from flexmix.documents.source import Piece, Source
from flexo.console import Advance

SUFFIXES = (".txt", ".text", ".md")  # of files that are documents in a folder; elsewhere text may be anything


def read(stored: Stored, source: Source, piece: Piece, advance: Advance) -> Rows:
    """The one row, with the columns of text and `path`."""
    with stored.open() as content:
        data = as_text(content, source.encoding).read()
    try:
        yield 1, {source.text: data.decode("utf-8"), "path": str(piece)}
    except UnicodeDecodeError as error:
        yield error.object.count(b"\n", 0, error.start) + 1, not_utf8(data, error)
    advance(piece.size)


def _columns(_stored: Stored, _head: Head, source: Source) -> list[str]:
    return [source.text, "path"]


FORMAT = Format("plain text", SUFFIXES, lambda head, _source: head.is_text, whole, read, _columns)
