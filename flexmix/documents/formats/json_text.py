"""JSON: objects whose keys are looked at, values one by one from a long text, and what kind of JSON a file is."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from typing import Any, Literal

from flexmix.documents.formats.format import Head
from flexmix.documents.source import Damaged, Source
from flexmix.documents.source.columns import text_column, value_of

Kind = Literal["lines", "records", "record", "object", "by columns"]
LINES = (".jsonl", ".ndjson", ".jsonlines")
NEAR = 16  # characters before the end in which an error may mean that more is to come
BLANK = re.compile(r"[ \t\n\r]*")
LIST = re.compile(r"\[\s*\{")
MORE = 1 << 16  # characters read at once


class UniqueKeys:
    """A decoder of JSON that notices when an object has a key twice, of which Python would keep the last."""

    def __init__(self) -> None:
        self.twice: str | None = None  # found since it was last set to None
        self.decoder = json.JSONDecoder(object_pairs_hook=self._object)

    def decode(self, text: str) -> Any:
        """The value that a text is; a repeated key makes it `Damaged`."""
        return self.checked(self.decoder.decode(text), text)

    def checked(self, value: Any, text: str) -> Any:
        """`value`, as it was just decoded from `text`, or `Damaged`."""
        if self.twice is None:
            return value
        key, self.twice = self.twice, None
        return Damaged(
            f"the key {key!r} is there twice in one object. Which is meant cannot be known: rename or drop one.",
            text,
        )

    def _object(self, pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        if len(found) < len(pairs) and self.twice is None:
            keys = [key for key, _ in pairs]
            self.twice = next(key for key in keys if keys.count(key) > 1)
        return found


class JsonReader:
    """Values of a long JSON text, one after the other, through a buffer that holds one of them.

    Args:
        read: gives up to so many more characters, "" at the end.
    """

    def __init__(self, read: Callable[[int], str]) -> None:
        self._read, self._text, self._at = read, "", 0
        self.ended = False
        self._keys = UniqueKeys()

    def peek(self) -> str:
        """The next character that is not blank; "" at the end."""
        while True:
            match = BLANK.match(self._text, self._at)
            assert match is not None, "an empty pattern matches"
            self._at = match.end()
            if self._at < len(self._text) or not self._more(MORE):
                return self._text[self._at : self._at + 1]

    def take(self, expected: str) -> None:
        """Steps over a sign; raises `ValueError` if it is not the next."""
        if (found := self.peek()) != expected:
            raise ValueError(f"{found!r} where {expected!r} was expected" if found else "the file ends too early")
        self._at += 1

    def value(self) -> Any:
        """The next value; `Damaged` if a key is repeated in it.

        Raises `ValueError` if it is not JSON, or the text ends in it.
        """
        self.peek()
        size = MORE
        while True:
            try:
                value, end = self._keys.decoder.raw_decode(self._text, self._at)
            except json.JSONDecodeError as error:
                self._keys.twice = None
                cut = error.msg.startswith("Unterminated string") or error.pos >= len(self._text) - NEAR
                if not (cut and self._more(size)):
                    raise ValueError("the file ends in the middle of it" if cut and self.ended else error.msg) from None
                size *= 2  # so that a long value is not begun too often
                continue
            if end < len(self._text) or isinstance(value, dict | list | str) or not self._more(size):
                break  # a number may go on behind the buffer
        beginning = self._text[self._at : min(end, self._at + MORE)] if self._keys.twice else ""
        self._at = end
        return self._keys.checked(value, beginning)

    def items(self) -> Iterator[Any]:
        """The values of a list whose bracket is the next sign."""
        self.take("[")
        if self.peek() == "]":
            self.take("]")
            return
        while True:
            yield self.value()
            if self.peek() == "]":
                self.take("]")
                return
            self.take(",")

    def each_key(self) -> Iterator[str]:
        """The keys of an object whose brace is the next sign; the value is read between two of them."""
        self.take("{")
        if self.peek() == "}":
            self.take("}")
            return
        while True:
            key = self.value()
            if not isinstance(key, str):
                raise ValueError("a key that is no text")
            self.take(":")
            yield key
            if self.peek() == "}":
                self.take("}")
                return
            self.take(",")

    def _more(self, size: int) -> bool:
        if self.ended:
            return False
        more = self._read(size)
        self.ended = not more
        self._text, self._at = self._text[self._at :] + more, 0
        return bool(more)


def kind_of(head: Head, source: Source) -> Kind | None:
    """What kind of JSON a file is, or None if it is none.

    "lines" are objects, one a line; "records" a list of objects, perhaps wrapped in an object; "record" objects with
    text that are not one a line; "by columns" an object of columns, as pandas writes it; "object" any other.
    """
    text = head.text.lstrip()
    if not text.startswith(("{", "[")):
        return None
    first, end, rest = _first_line(text)
    value = _decoded(first) if end or head.whole else None
    named = head.suffix in LINES
    if isinstance(value, dict):
        return "lines" if rest.strip() or not head.whole else _kind_of_object(value, source, named)
    if isinstance(value, list) and rest.strip():
        return "lines"
    ends = _ends(text, head.whole)
    if ends is None or (ends <= len(first) and value is None):  # broken, or followed by something else
        if named or isinstance(_decoded(_first_line(rest)[0]), dict):
            return "lines"
        if ends is None or not (text.startswith("{") and text[ends:].lstrip().startswith("{")):
            return None
    if text.startswith("["):
        return "records"
    return _kind_of_beginning(text, source, lines=not (end or head.whole) and head.suffix != ".json")


def is_record(value: Any, source: Source) -> bool:
    """Whether a value is an object with the column of text."""
    if not isinstance(value, dict):
        return False
    try:
        value_of(value, text_column(value, source))
    except KeyError:
        return False
    return True


def _first_line(text: str) -> tuple[str, str, str]:
    match = re.search(r"\r\n|\n|\r", text)
    return (text[: match.start()], match[0], text[match.end() :]) if match else (text, "", "")


def _decoded(line: str) -> Any:
    try:
        return json.loads(line)
    except (ValueError, RecursionError):
        return None


def _ends(text: str, whole: bool) -> int | None:
    """Where the value that begins a text ends, or the text does; None if it is broken before."""
    try:
        return json.JSONDecoder().raw_decode(text)[1]
    except json.JSONDecodeError as error:
        cut = error.msg.startswith("Unterminated string") or error.pos >= len(text) - NEAR
        return len(text) if cut and not whole else None
    except (ValueError, RecursionError):
        return None


def _kind_of_object(value: dict[str, Any], source: Source, lines: bool) -> Kind:
    column = text_column(value, source)
    if isinstance(value.get(column), dict) or (
        isinstance(value.get(column), list) and not any(isinstance(item, dict) for item in value[column])
    ):
        return "by columns"
    if is_record(value, source):
        return "lines"
    if any(is_record(record, source) for record in _first_records(value)):
        return "records"
    return "lines" if lines else "object"


def _first_records(value: dict[str, Any]) -> Iterator[Any]:
    """The first of each list in an object, at any depth."""
    for inner in value.values():
        if isinstance(inner, list) and inner:
            yield inner[0]
        elif isinstance(inner, dict):
            yield from _first_records(inner)


def _kind_of_beginning(text: str, source: Source, lines: bool) -> Kind:
    """The kind of an object of which only the beginning is there, or which goes on over several lines."""
    read = iter([text, ""])
    found: list[Kind] = []
    try:
        _look_into(JsonReader(lambda _size: next(read, "")), source, found, top=True)
    except (ValueError, RecursionError):  # it ends where the beginning ends, perhaps in the first record of a list
        if not (found or lines) and LIST.search(text) and f'"{source.text}"' in text:
            return "records"
    if lines and found in ([], ["record"]):
        return "lines"
    return found[0] if found else "object"


def _look_into(reader: JsonReader, source: Source, found: list[Kind], top: bool) -> None:
    for key in reader.each_key():
        sign = reader.peek()
        if top and key == text_column([key], source):
            found.append("by columns" if key == source.text and sign in ("{", "[") else "record")
            return
        if sign == "[":
            for n, item in enumerate(reader.items()):
                if n == 0 and is_record(item, source):
                    found.append("records")
                    return
        elif sign == "{":
            _look_into(reader, source, found, top=False)
            if found:
                return
        else:
            reader.value()
