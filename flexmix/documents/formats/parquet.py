"""Parquet: cut between row groups, read column by column through a small buffer."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from flexmix.documents.formats.arrow import ROWS, python_rows, refuse_packed, undamaged
from flexmix.documents.formats.format import Format, Head, Range, Rows
from flexmix.documents.formats.unpacking import Stored
from flexmix.documents.source import Piece, Source
from flexmix.documents.source.columns import columns_to_read, refuse_schema
from flexo.console import Advance
from flexo.errors import InputError

MAGIC = b"PAR1"


def cut(stored: Stored, head: Head, source: Source, task_bytes: int) -> Iterator[Range]:
    """Ranges of row groups; refuses a table without the columns asked for, or with other than text."""
    refuse_packed(stored, head, "Parquet")
    with _parquet(stored.path) as file:
        refuse_schema(file.schema_arrow, source, str(stored))
        groups = [file.metadata.row_group(n).total_byte_size for n in range(file.metadata.num_row_groups)]
    first, size = 0, 0
    for number, bytes_ in enumerate(groups):
        if size and size + bytes_ > task_bytes:
            yield size, first, number
            first, size = number, 0
        size += bytes_
    yield size, first, len(groups)


def read(stored: Stored, source: Source, piece: Piece, advance: Advance) -> Rows:
    """The rows of some row groups, numbered in the file from 1."""
    assert piece.last is not None, "cut into row groups"
    with _parquet(stored.path) as file:
        columns = columns_to_read(file.schema_arrow.names, source)
        counts = [file.metadata.row_group(n).num_rows for n in range(piece.last)]
        number, ours = sum(counts[: piece.first]), max(1, sum(counts[piece.first :]))
        batches = file.iter_batches(ROWS, row_groups=list(range(piece.first, piece.last)), columns=columns)
        for batch in undamaged(batches):
            for row in python_rows(batch, str(stored)):
                number += 1
                yield number, row
            advance(piece.size * len(batch) / ours)


def _columns(stored: Stored, _head: Head, _source: Source) -> list[str]:
    with _parquet(stored.path) as file:
        return list(file.schema_arrow.names)


@contextmanager
def _parquet(path: Path) -> Iterator[Any]:
    import pyarrow.parquet as pq

    try:
        file = pq.ParquetFile(path, buffer_size=1 << 20, pre_buffer=False, page_checksum_verification=True)
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: not a readable Parquet file ({error}). Copy the file again.") from None
    with file:
        yield file


FORMAT = Format(
    "Parquet", (".parquet", ".pq"), lambda head, _source: head.data.startswith(MAGIC), cut, read, _columns, "row"
)
