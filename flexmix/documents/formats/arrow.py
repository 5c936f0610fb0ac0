"""Arrow: files and streams of record batches, as `datasets` keeps them and Feather (version 2) writes them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from flexmix.documents.formats.format import Format, Head, Range, Rows, size_of
from flexmix.documents.formats.unpacking import BrokenContentError, Stored
from flexmix.documents.source import Piece, Row, Source
from flexmix.documents.source.columns import columns_to_read, refuse_schema
from flexo.console import Advance
from flexo.errors import InputError

FILE, STREAM = b"ARROW1\0\0", b"\xff\xff\xff\xff"
ROWS = 64  # made into objects at once


def cut(stored: Stored, head: Head, source: Source, task_bytes: int) -> Iterator[Range]:
    """Ranges of record batches of a file; a stream is read from end to end."""
    refuse_packed(stored, head, "Arrow")
    size = size_of(stored)
    with _opened(stored.path) as reader:
        refuse_schema(reader.schema, source, str(stored))
        batches = getattr(reader, "num_record_batches", None)
    if not batches:
        yield size, 0, None
        return
    step = max(1, task_bytes * batches // max(1, size))
    for first in range(0, batches, step):
        last = min(first + step, batches)
        yield size * (last - first) // batches, first, last


def read(stored: Stored, source: Source, piece: Piece, advance: Advance) -> Rows:
    """The rows of some record batches, numbered in the file from 1."""
    number = _rows_before(stored.path, piece.first)
    with _opened(stored.path) as reader:
        columns = columns_to_read(reader.schema.names, source)
        batches = iter(reader) if piece.last is None else (reader.get_batch(n) for n in range(piece.first, piece.last))
        for batch in undamaged(batches):
            for first in range(0, len(batch), ROWS):
                some = batch.slice(first, ROWS)
                for row in python_rows(some if columns is None else some.select(columns), str(stored)):
                    number += 1
                    yield number, row
    advance(piece.size)


def undamaged(batches: Iterator[Any]) -> Iterator[Any]:
    """The same batches; raises `BrokenContentError` where one cannot be read."""
    while True:
        try:
            batch = next(batches, None)
        except (OSError, ValueError) as error:  # Arrow's own errors are both
            raise BrokenContentError("damaged", error) from None
        if batch is None:
            return
        yield batch


def python_rows(batch: Any, where: str) -> list[Row]:
    """The rows of a batch or table as objects; raises `InputError` for values that Python has no form for."""
    try:
        rows: list[Row] = batch.to_pylist()
    except (ValueError, TypeError, OverflowError, NotImplementedError, LookupError) as error:  # by the column's type
        raise InputError(
            f"{where}: a column of {', '.join(str(field.type) for field in batch.schema)} cannot be turned into values "
            f"({error}). Write the file again with the columns that are needed, as text."
        ) from None
    return rows


def refuse_packed(stored: Stored, head: Head, name: str) -> None:
    """Raises `InputError` for a table inside another packing, which cannot be read in parts."""
    if head.packed:
        raise InputError(
            f"{stored}: a {name} file packed with {head.packed[-1]}. Unpack it first; {name} packs its columns itself."
        )


def _columns(stored: Stored, _head: Head, _source: Source) -> list[str]:
    with _opened(stored.path) as reader:
        return list(reader.schema.names)


def _rows_before(path: Path, batch: int) -> int:
    """The rows of the batches before one, counted on a single column, for batches are unpacked as they are opened."""
    if not batch:
        return 0
    with _opened(path) as reader:
        smallest = min(range(len(reader.schema)), key=lambda n: _width(reader.schema.field(n).type))
    with _opened(path, included_fields=[smallest]) as reader:
        return sum(reader.get_batch(n).num_rows for n in range(batch))


def _width(found: Any) -> int:
    """Bits of a value; more than those of any number for what has no fixed width."""
    try:
        return int(found.bit_width)
    except ValueError:
        return 1 << 10


@contextmanager
def _opened(path: Path, **options: Any) -> Iterator[Any]:
    import pyarrow as pa

    reading = pa.ipc.IpcReadOptions(**options)
    with pa.memory_map(str(path)) as file:
        try:
            begins = file.read(len(FILE))
            file.seek(0)
            opener = pa.ipc.open_file if begins == FILE else pa.ipc.open_stream
            reader = opener(file, options=reading)
        except (OSError, ValueError) as error:
            raise InputError(f"{path}: not a readable Arrow file ({error}). Copy the file again.") from None
        yield reader


FORMAT = Format(
    "Arrow",
    (".arrow", ".feather", ".ipc"),
    lambda head, _source: head.data.startswith((FILE, STREAM)),
    cut,
    read,
    _columns,
    "row",
)
