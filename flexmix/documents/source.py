"""What a source of documents is: a place, which of its documents to take, and the pieces that it is read in."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, Literal

from flexo.errors import InputError

HUB = "hub:"
JSON = (".jsonl", ".jsonl.gz", ".jsonl.zst", ".json.gz", ".json.zst")
PARQUET = (".parquet",)
TEXT = (".txt", ".text", ".md")
TASK = 8 << 20  # bytes of a source that one task reads, about; a compressed file is never cut
Kind = Literal["json", "parquet", "text", "saved", "hub"]
Document = tuple[str, dict[str, Any]]  # the text, "" where there is none, and all columns


@dataclass(frozen=True)
class Source:
    """One place with documents, and which of them to take.

    A document has its text in the column `text`; of a text file all is text, and `path` is its other column. It is
    taken if each column of `where` holds the value given (compared as text), the text has `min_length` characters, and
    each function of `keep` says yes (see `flexmix.documents.filters`).
    """

    place: str
    text: str = "text"
    subset: str | None = None
    split: str = "train"
    revision: str | None = None
    streaming: bool = True  # False downloads a hub dataset first
    documents: int | None = None  # read at most this many
    where: dict[str, str] = field(default_factory=dict)
    min_length: int = 0
    keep: tuple[str, ...] = ()

    @property
    def hub_id(self) -> str | None:
        """The dataset's id, if it is read by way of the hub's layout."""
        return self.place.removeprefix(HUB) if self.place.startswith(HUB) else None


@dataclass(frozen=True)
class Piece:
    """A file, or a range of one: bytes of JSON lines, row groups of Parquet, rows or shards of a dataset."""

    kind: Kind
    path: str  # or hub id
    size: int  # bytes to read, about; 0 where nobody knows
    first: int = 0
    last: int | None = None


def refuse_missing(columns: Iterable[str], source: Source, where: str) -> None:
    """Raises `InputError` if a table lacks the column of text or one of the filter."""
    there = list(columns)
    for column in (source.text, *source.where):
        if column not in there:
            raise InputError(
                f"{where}: no column {column!r} (found {', '.join(map(repr, sorted(there)[:12])) or 'none'})."
            )


def refuse_type(found: str, source: Source, where: str) -> None:
    if "string" not in found and found != "null":
        raise InputError(f"{where}: the column {source.text!r} holds {found}, expected text.")
