"""Where documents come from: files, folders, saved datasets and the hub behind one interface, in constant memory.

    source = Source("export/", text="body", where={"lang": "en"}, min_length=200)
    for pieces in plan(source):                  # fixed by the input; each list can be read by a process of its own
        for text, row in read(source, pieces): ...

A place is a `.jsonl[.gz|.zst]`, `.parquet` or text file, a folder of such files, a folder made by
`Dataset.save_to_disk`, or `hub:ID`, a dataset on the hub or a local folder laid out like one.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

from flexmix.documents import json_lines
from flexmix.documents.json_lines import line_of, not_utf8, text_of
from flexmix.documents.source import HUB, JSON, PARQUET, TASK, TEXT, Document, Piece, Source
from flexo.console import Advance
from flexo.errors import InputError


def plan(source: Source, task_bytes: int = TASK) -> list[list[Piece]]:
    """Cuts a source into lists of pieces, one list a task, always the same for the same input.

    Raises:
        InputError: there is nothing to read, or the column of text is missing, as far as that shows without reading.
    """
    if source.documents is not None and source.documents < 1:
        raise InputError(f"{source.place}: documents is {source.documents}, expected at least 1.")
    pieces: Iterable[Piece]
    if source.hub_id is not None:
        from flexmix.documents.hf_datasets import hub_pieces

        pieces = hub_pieces(source, task_bytes)
    else:
        pieces = _local_pieces(source, task_bytes)
    if source.documents is not None:  # the first so many are the same only if one task reads them in order
        return [list(pieces)]
    tasks: list[list[Piece]] = []
    room = 0
    for piece in pieces:
        if not tasks or piece.size > room or not piece.size:
            tasks.append([])
            room = task_bytes
        tasks[-1].append(piece)
        room -= piece.size
    return tasks


def read(source: Source, pieces: Sequence[Piece], advance: Advance = lambda _amount: None) -> Iterator[Document]:
    """The documents of some pieces, in order. `advance` is told of the bytes read, as `Piece.size` counts them.

    Raises:
        InputError: the input is damaged, or a document has no text column or one that holds no text; says where.
    """
    every = (document for piece in pieces for document in _read(source, piece, advance))
    return islice(every, source.documents)


def left_out(source: Source) -> dict[str, int]:
    """How many files of a folder are not read, by suffix."""
    folder = Path(source.place)
    if source.hub_id or not folder.is_dir() or is_saved(folder):
        return {}
    files = _files(folder)
    taken = set(_readable(files))
    return dict(sorted(Counter(path.suffix or path.name for path in files if path not in taken).items()))


def is_saved(folder: Path) -> bool:
    """Whether a folder was made by `save_to_disk`."""
    return (folder / "dataset_dict.json").is_file() or (
        (folder / "state.json").is_file() and (folder / "dataset_info.json").is_file()
    )


def _read(source: Source, piece: Piece, advance: Advance) -> Iterator[Document]:
    column, path = source.text, Path(piece.path)
    if piece.kind == "text":
        yield (text := _read_text(path)), {column: text, "path": piece.path}
        advance(piece.size)
    elif piece.kind == "json":
        for number, row in json_lines.read_rows(path, piece.first, piece.last, advance):
            yield _document(row, column, partial(_line, path, piece.first, number))
    else:
        from flexmix.documents.hf_datasets import hub_rows, saved_rows
        from flexmix.documents.parquet import parquet_rows

        rows = {"parquet": parquet_rows, "saved": saved_rows, "hub": hub_rows}[piece.kind]
        for number, row in rows(source, piece, advance):
            yield _document(row, column, partial("{}: row {}".format, piece.path, number))


def _document(row: Any, column: str, where: Callable[[], str]) -> Document:
    """Null is a document without text; anything else that is no text is refused."""
    if isinstance(row, dict) and column in row and row[column] is None:
        return "", row
    return text_of(row, column, where), row


def _line(path: Path, first: int, number: int) -> str:
    return f"{path}: line {line_of(path, first, number)}"


def _read_text(path: Path) -> str:
    data = path.read_bytes()
    try:
        return data.removeprefix(b"\xef\xbb\xbf").decode("utf-8")
    except UnicodeDecodeError as error:
        line = error.object.count(b"\n", 0, error.start) + 1
        raise not_utf8(error, f"{path}: line {line}") from None


def _local_pieces(source: Source, task_bytes: int) -> Iterator[Piece]:
    path = Path(source.place)
    if path.is_dir() and is_saved(path):
        from flexmix.documents.hf_datasets import saved_pieces

        yield from saved_pieces(source, task_bytes)
        return
    if not path.exists():
        hint = ""
        if source.place.count("/") == 1 and not source.place.startswith((".", "/")):
            hint = f" If it is a dataset on the hub, write {HUB}{source.place}."
        raise InputError(f"{path}: no such file or folder.{hint}")
    files = _readable([path]) if path.is_file() else _readable(_files(path))
    if not files:
        held = ", ".join(f"{n} {suffix}" for suffix, n in left_out(source).items()) or "nothing"
        raise InputError(
            f"{path}: no text in a form that can be read (found {path.name if path.is_file() else held}). Expected "
            f"{', '.join((*JSON[:3], *PARQUET, *TEXT))}, or a folder of such files."
        )
    for file in files:
        yield from _file_pieces(file, source, task_bytes)


def _file_pieces(path: Path, source: Source, task_bytes: int) -> Iterator[Piece]:
    size = path.stat().st_size
    if path.name.endswith(PARQUET):
        from flexmix.documents.parquet import parquet_pieces

        yield from parquet_pieces(path, source, task_bytes)
    elif path.name.endswith(TEXT):
        yield Piece("text", str(path), size)
    elif path.suffix != ".jsonl":
        yield Piece("json", str(path), size)
    else:
        for first in range(0, max(1, size), task_bytes):
            last = min(first + task_bytes, size)
            yield Piece("json", str(path), last - first, first, last)


def _files(folder: Path) -> list[Path]:
    """All files below a folder but hidden ones, in the order of their names."""
    found = (path for path in folder.rglob("*") if path.is_file())
    shown = (path for path in found if not any(part.startswith(".") for part in path.relative_to(folder).parts))
    return sorted(shown, key=lambda path: path.relative_to(folder).as_posix())


def _readable(files: list[Path]) -> list[Path]:
    """Tables and JSON lines; text files only where there is neither, for beside data they are its description."""
    data = [path for path in files if path.name.endswith((*JSON, *PARQUET))]
    return data or [path for path in files if path.name.endswith(TEXT)]
