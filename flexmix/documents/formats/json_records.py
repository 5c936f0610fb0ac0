"""JSON records: a list of objects, alone or wrapped in an object, read one record at a time.

[{"text": "..."}, {"text": "..."}]      {"count": 2, "data": [{"text": "..."}, {"text": "..."}]}
"""

from __future__ import annotations

import io
from collections.abc import Iterator
from typing import Any

from flexmix.documents.formats.format import Format, Head, Rows, as_text, whole
from flexmix.documents.formats.json_text import JsonReader, is_record, kind_of
from flexmix.documents.formats.unpacking import BrokenContentError, Stored
from flexmix.documents.source import Piece, Source
from flexo.console import Advance
from flexo.errors import InputError

OFTEN = 64  # records between two reports of progress


def read(stored: Stored, source: Source, piece: Piece, advance: Advance) -> Rows:
    """The records of the list, numbered from 1. Of several lists the one whose first object has the column of text.

    Raises:
        InputError: two lists hold documents.
    """
    number, told = 0, 0
    with stored.open() as content:
        text = io.TextIOWrapper(as_text(content, source.encoding), encoding="utf-8", newline="")
        reader = JsonReader(text.read)
        try:
            for number, record in enumerate(_records(reader, source, str(stored)), 1):
                yield number, record
                if number % OFTEN == 0:
                    told, before = content.told(), told
                    advance(told - before)
            if reader.peek():
                raise ValueError("something stands behind the end")
        except (ValueError, RecursionError) as error:
            why = f"not UTF-8: {error}" if isinstance(error, UnicodeDecodeError) else str(error)
            remedy = "Copy the file again, or mend it; what is behind such damage cannot be told apart."
            raise BrokenContentError("not JSON", why, remedy=remedy) from None
        advance(piece.size - told)


def _records(reader: JsonReader, source: Source, where: str) -> Iterator[Any]:
    if reader.peek() == "[":
        yield from reader.items()
        return
    read = ""  # the keys of the list that was read
    for path, first, others in _lists(reader, ""):
        if not is_record(first, source):
            for _ in others:
                pass
            continue
        if read:
            raise InputError(
                f"{where}: two lists of documents in one object, {read} and {path}. Write them to files of their own, "
                f"for example with jq -c '.{path}[]'."
            )
        read = path
        yield first
        yield from others


def _lists(reader: JsonReader, path: str) -> Iterator[tuple[str, Any, Iterator[Any]]]:
    """The lists in an object at any depth, each with its keys, its first value and the others, which must be read."""
    for key in reader.each_key():
        inner = f"{path}.{key}" if path else key
        if (sign := reader.peek()) == "{":
            yield from _lists(reader, inner)
        elif sign == "[":
            others = reader.items()
            for first in others:
                yield inner, first, others
        else:
            reader.value()


def _columns(_stored: Stored, head: Head, source: Source) -> list[str]:
    """Of the first record, if the beginning of the file holds it whole."""
    rest = iter([head.text, ""])
    try:
        first = next(_records(JsonReader(lambda _size: next(rest, "")), source, ""), None)
    except (ValueError, RecursionError):
        return []
    return list(first) if isinstance(first, dict) else []


FORMAT = Format(
    "JSON records", (".json",), lambda head, source: kind_of(head, source) == "records", whole, read, _columns, "record"
)  # fmt: skip
