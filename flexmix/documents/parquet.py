"""Documents of Parquet files, cut between row groups and read through a small buffer."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from flexmix.documents.hf_datasets import ROWS, Row
from flexmix.documents.source import Piece, Source, refuse_missing, refuse_type
from flexo.console import Advance
from flexo.errors import InputError


def parquet_pieces(path: Path, source: Source, task_bytes: int) -> Iterator[Piece]:
    """A Parquet file cut between row groups; refuses one without the columns asked for, or with other than text."""
    with _parquet(path) as file:
        schema = file.schema_arrow
        refuse_missing(schema.names, source, str(path))
        refuse_type(str(schema.field(source.text).type), source, str(path))
        groups = [file.metadata.row_group(n).total_byte_size for n in range(file.metadata.num_row_groups)]
    first, size = 0, 0
    for number, bytes_ in enumerate(groups):
        if size and size + bytes_ > task_bytes:
            yield Piece("parquet", str(path), size, first, number)
            first, size = number, 0
        size += bytes_
    yield Piece("parquet", str(path), size, first, len(groups))


def parquet_rows(source: Source, piece: Piece, advance: Advance) -> Iterator[tuple[int, Row]]:
    """The rows of some row groups, numbered in the file from 1; column by column through a small buffer."""
    path = Path(piece.path)
    assert piece.last is not None
    columns = None if source.keep else list(dict.fromkeys((source.text, *source.where)))
    with _parquet(path) as file:
        counts = [file.metadata.row_group(n).num_rows for n in range(piece.last)]
        number, ours = sum(counts[: piece.first]), max(1, sum(counts[piece.first :]))
        batches = file.iter_batches(ROWS, row_groups=list(range(piece.first, piece.last)), columns=columns)
        while True:
            try:
                batch = next(batches, None)
                rows = batch.to_pylist() if batch is not None else None
            except (OSError, ValueError) as error:  # Arrow's own errors are both
                raise InputError(f"{path}: damaged after row {number} ({error}). Copy the file again.") from None
            if rows is None:
                return
            for row in rows:
                number += 1
                yield number, row
            advance(piece.size * len(rows) / ours)


@contextmanager
def _parquet(path: Path) -> Iterator[Any]:
    import pyarrow.parquet as pq

    try:
        file = pq.ParquetFile(path, buffer_size=1 << 20, pre_buffer=False, page_checksum_verification=True)
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: not a readable Parquet file ({error}). Copy the file again.") from None
    with file:
        yield file
