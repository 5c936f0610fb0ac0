"""Where documents come from: files, folders, saved datasets and the hub behind one interface, in constant memory.

    source = Source("export/", text="body", where={"lang": "en"}, min_length=200)
    for pieces in cut_into_tasks(source).tasks:   # fixed by the input; each list can be read by a process of its own
        for document in read(source, pieces): ...

A place is a file or a zip archive of files in one of the forms of `flexmix.documents.formats`, a folder of such files,
a folder made by `Dataset.save_to_disk`, or `hub:ID`, a dataset on the hub or a local folder laid out like one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

from flexmix.documents.conversations import ChatTemplate, NoTemplateError, messages_of
from flexmix.documents.files import NotRead, find_files, read_head
from flexmix.documents.formats import BY_NAME
from flexmix.documents.formats.format import Rows, size_of
from flexmix.documents.formats.json_lines import line_of
from flexmix.documents.formats.unpacking import BrokenContentError, Stored
from flexmix.documents.source import TASK, Conversation, Damaged, Document, Piece, Row, SetAside, Source
from flexmix.documents.source.columns import no_column, text_column, value_of
from flexo.console import Advance
from flexo.errors import InputError


class Cut(NamedTuple):
    """A source cut into lists of pieces, one list a task, and the files of it that are not read."""

    tasks: list[list[Piece]]
    not_read: list[NotRead]


def cut_into_tasks(source: Source, task_bytes: int = TASK) -> Cut:
    """Cuts a source into tasks, always the same for the same input.

    Raises:
        InputError: there is nothing to read, or the column of text is missing, as far as that shows without reading.
    """
    if source.documents is not None and source.documents < 1:
        raise InputError(f"{source.place}: documents is {source.documents}, expected at least 1.")
    not_read: list[NotRead] = []
    pieces: Iterable[Piece]
    if source.hub_id is not None:
        from flexmix.documents.hf_datasets import hub_pieces

        pieces = hub_pieces(source, task_bytes)
    elif is_saved(Path(source.place)):
        from flexmix.documents.hf_datasets import saved_pieces

        pieces = saved_pieces(source, task_bytes)
    else:
        pieces = _file_pieces(source, task_bytes, not_read)
    if source.documents is not None:  # the first so many are the same only if one task reads them in order
        return Cut([list(pieces)], not_read)
    tasks: list[list[Piece]] = []
    room = 0
    for piece in pieces:
        if not tasks or piece.size > room or not piece.size:
            tasks.append([])
            room = task_bytes
        tasks[-1].append(piece)
        room -= piece.size
    return Cut(tasks, not_read)


def read(
    source: Source,
    pieces: Sequence[Piece],
    advance: Advance = lambda _amount: None,
    set_aside: Callable[[SetAside], None] | None = None,
    template: ChatTemplate | None = None,
) -> Iterator[Document]:
    """The documents of some pieces, in order.

    Args:
        advance: told of the bytes read, as `Piece.size` counts them.
        set_aside: told of damaged records, which are then passed over; without it they are refused.
        template: writes conversations out; without it a conversation's text is its messages, one after the other.

    Raises:
        InputError: the input is damaged, or a document has no text column or one that holds no text; says where.
    """
    told = set_aside or _refuse
    every = (document for piece in pieces for document in _read(source, piece, advance, told, template))
    return islice(every, source.documents)


def read_all(source: Source, template: ChatTemplate | None = None) -> Iterator[Document]:
    """All documents of a source, in order, in constant memory. Raises `InputError` as `cut_into_tasks` and `read`."""
    for pieces in cut_into_tasks(source).tasks:  # a single one where the number of documents is limited
        yield from read(source, pieces, template=template)


def is_saved(folder: Path) -> bool:
    """Whether a folder was made by `save_to_disk`."""
    return (folder / "dataset_dict.json").is_file() or (
        (folder / "state.json").is_file() and (folder / "dataset_info.json").is_file()
    )


def _file_pieces(source: Source, task_bytes: int, not_read: list[NotRead]) -> Iterator[Piece]:
    found = find_files(source)
    not_read += found.not_read
    for stored, form, columns in found.read:
        head = read_head(stored, source)
        asked = replace(source, where={name: value for name, value in source.where.items() if name not in columns})
        for size, first, last in form.cut(stored, head, asked, task_bytes):
            yield Piece(form.name, str(stored.path), size, first, last, stored.member, columns)


def _read(
    source: Source,
    piece: Piece,
    advance: Advance,
    set_aside: Callable[[SetAside], None],
    template: ChatTemplate | None,
) -> Iterator[Document]:
    number, unit = 0, "row"
    column = source.text
    try:
        if piece.format in BY_NAME:
            form, stored = BY_NAME[piece.format], Stored(Path(piece.path), piece.member)
            unit, rows = form.unit, form.read(stored, source, piece, advance)
        else:
            rows = _dataset_rows(source, piece, advance)
        for number, row in rows:
            if type(row) is dict and type(text := row.get(column)) is str and (text.isascii() or _is_utf8(text)):
                yield Document(text, piece.columns | row if piece.columns else row)
                continue
            made = _document(row, source, template)
            if isinstance(made, Damaged):
                set_aside(SetAside(str(piece), f"{unit} {_numbered(piece, number)}", made))
            else:
                yield made._replace(columns=piece.columns | made.columns) if piece.columns else made
    except BrokenContentError as error:
        size = size_of(Stored(Path(piece.path), piece.member))
        raise InputError(error.said(str(piece), f"after {unit} {_numbered(piece, number)}", size)) from None
    except NoTemplateError as error:
        raise InputError(f"{piece}: {unit} {_numbered(piece, number)}: {error}") from None


def _refuse(found: SetAside) -> None:
    raise InputError(str(found))


def _numbered(piece: Piece, number: int) -> int:
    """The number in the whole file; JSON lines are counted from where the piece begins."""
    return line_of(Path(piece.path), piece.first, number) if piece.format == "JSON lines" else number


def _dataset_rows(source: Source, piece: Piece, advance: Advance) -> Rows:
    from flexmix.documents.hf_datasets import SAVED, hub_rows, saved_rows

    return (saved_rows if piece.format == SAVED else hub_rows)(source, piece, advance)


def _document(row: Row | Damaged | Any, source: Source, template: ChatTemplate | None) -> Document | Damaged:
    """A row as a document; null is a document without text, anything else that is no text is damage."""
    if isinstance(row, Damaged):
        return row
    if not isinstance(row, dict):
        return Damaged(f"{type(row).__name__}, expected an object with the column {source.text!r}.", repr(row))
    column = text_column(row, source)
    try:
        text = value_of(row, column)
    except KeyError:
        return Damaged(no_column(column, row), repr(row))
    if text is None:
        return Document("", row)
    if isinstance(text, bytes):
        try:
            text = text.decode("utf-8")
        except UnicodeDecodeError as error:
            return Damaged(f"the column {column!r} holds bytes that are not UTF-8 ({error}).", repr(text))
    if isinstance(text, list) and (not text or isinstance(text[0], dict)):
        return _conversation(text, row, column, template)
    if not isinstance(text, str):
        return Damaged(f"the column {column!r} holds {type(text).__name__}, expected text.", repr(row))
    if not _is_utf8(text):
        return Damaged(_half_a_pair(text), repr(text))
    return Document(text, row | {column: text})


def _conversation(found: list[Any], row: Row, column: str, template: ChatTemplate | None) -> Document | Damaged:
    messages = messages_of(found)
    if isinstance(messages, str):
        return Damaged(f"the column {column!r} holds {messages}.", repr(row))
    if not any(message["content"].strip() for message in messages):
        return Document("", row)
    if template is None:
        text = "\n".join(message["content"] for message in messages)
        return Document(text, row, Conversation(text, (), (), messages))
    written = template.write_out(messages)
    return written if isinstance(written, Damaged) else Document(written.text, row, written)


def _is_utf8(text: str) -> bool:
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True


def _half_a_pair(text: str) -> str:
    """What is said of a text with a character that is none, from JSON or, of a CSV file, from bytes."""
    at = next(n for n, sign in enumerate(text) if "\ud800" <= sign <= "\udfff")
    if "\udc80" <= text[at] <= "\udcff":
        return (
            f"not UTF-8 (byte {ord(text[at]) - 0xDC00:#04x} in the text). If the whole file is in another encoding, "
            "name it: flexo-data prepare --encoding NAME."
        )
    return "the text holds half of a surrogate pair, which is no character."
