"""What a source of documents is: a place, which of its documents to take, and the pieces that it is read in."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, NamedTuple

HUB = "hub:"
TEXT, MESSAGES = "text", "messages"  # the column of text, and that of conversations, unless another is named
TASK = 8 << 20  # bytes of a source that one task reads, about; a packed file is never cut

Row = dict[str, Any]
Message = dict[str, Any]  # role, content and what else a chat template may ask for
Spans = tuple[tuple[int, int], ...]  # first and past-the-last character, in order


@dataclass(frozen=True)
class Source:
    """One place with documents, and which of them to take.

    A document has its text in the column `text`, or is a conversation in the column `messages` where there is no column
    of the name `text`. Of a text file all is text, and `path` is its other column. It is taken if each column of
    `where` holds the value given (see `columns.holds` beside this), the text has `min_length` characters and no longer
    word than `max_word`, and each function of `keep` says yes (see `flexmix.documents.filters`).
    """

    place: str
    text: str = TEXT
    subset: str | None = None
    split: str = "train"
    revision: str | None = None
    streaming: bool = True  # False downloads a hub dataset first
    documents: int | None = None  # read at most this many
    where: dict[str, str] = field(default_factory=dict)
    min_length: int = 0
    max_word: int = 0  # characters without white space between them; 0 allows any number
    keep: tuple[str, ...] = ()
    encoding: str | None = None  # of text files whose content does not say it; None: UTF-8
    separator: str | None = None  # of the cells of a CSV file; None: found

    @property
    def hub_id(self) -> str | None:
        """The dataset's id, if it is read by way of the hub's layout."""
        return self.place.removeprefix(HUB) if self.place.startswith(HUB) else None


@dataclass(frozen=True)
class Piece:
    """A file, or a range of one: bytes of JSON lines, row groups of Parquet, rows or shards of a dataset."""

    format: str  # the name of one in `flexmix.documents.formats`, or of a kind of dataset
    path: str  # or hub id
    size: int  # bytes to read, about; 0 where nobody knows
    first: int = 0
    last: int | None = None
    member: str | None = None  # of a zip archive
    columns: dict[str, str | None] = field(default_factory=dict)  # that the names of its folders add

    def __str__(self) -> str:
        return self.path if self.member is None else f"{self.path}/{self.member}"


class Conversation(NamedTuple):
    """A conversation written out as text."""

    text: str
    answers: Spans  # where the answers are
    spelled: tuple[int, ...]  # places in special tokens that a message spells, and that are none
    messages: list[Message]


class Document(NamedTuple):
    """A text, "" where there is none, and all columns."""

    text: str
    columns: Row
    conversation: Conversation | None = None  # what the text is


class Damaged(NamedTuple):
    """A record that cannot be used, in place of its row."""

    reason: str
    beginning: str = ""  # of what stands there
    lines: int = 1  # that it takes up


class SetAside(NamedTuple):
    """A damaged record and where it is."""

    file: str
    at: str  # the line, row or record
    damaged: Damaged

    def __str__(self) -> str:
        return f"{self.file}: {self.at}: {self.damaged.reason}"
