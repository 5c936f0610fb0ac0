"""Rows of datasets saved to disk and of datasets on the hub, for `flexmix.documents.reading`."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from flexmix.documents.formats.arrow import ROWS, python_rows
from flexmix.documents.source import Piece, Row, Source
from flexmix.documents.source.columns import columns_to_read, refuse_missing, refuse_schema
from flexo.console import Advance
from flexo.errors import InputError

SAVED, ON_HUB = "saved dataset", "hub dataset"  # in place of a format's name


class UnreachableError(InputError):
    """A dataset cannot be had: no network, gated, gone, or of a layout that `datasets` does not know."""


def saved_pieces(source: Source, task_bytes: int) -> Iterator[Piece]:
    """A dataset saved to disk, cut between rows."""
    yield from _row_pieces(SAVED, source.place, _saved(source), source, task_bytes)


def hub_pieces(source: Source, task_bytes: int) -> Iterator[Piece]:
    """A hub dataset: its files when it is streamed, ranges of rows when it was downloaded."""
    assert source.hub_id is not None
    data = _hub(source)
    if not source.streaming:
        yield from _row_pieces(ON_HUB, source.hub_id, data, source, task_bytes)
        return
    if data.column_names is not None:
        refuse_missing(data.column_names, source, source.hub_id)
    for shard in range(data.num_shards):
        yield Piece(ON_HUB, source.hub_id, 0, shard, data.num_shards)


def saved_rows(source: Source, piece: Piece, advance: Advance) -> Iterator[tuple[int, Row]]:
    yield from _range(_saved(source), source, piece, advance)


def hub_rows(source: Source, piece: Piece, advance: Advance) -> Iterator[tuple[int, Row]]:
    """The rows of a shard or range of a hub dataset; raises `UnreachableError` if it goes away on the way."""
    data = _hub(source)
    if not source.streaming:
        yield from _range(data, source, piece, advance)
        return
    assert piece.last is not None
    if data.column_names is not None and (columns := columns_to_read(data.column_names, source)) is not None:
        data = data.select_columns(columns)  # pictures and recordings beside the text are not decoded
    number = 0
    try:
        for number, row in enumerate(data.shard(num_shards=piece.last, index=piece.first), 1):
            yield number, row
    except InputError:
        raise
    except Exception as error:
        message = f"{piece.path} cannot be read after row {number} of shard {piece.first} {_why(error)}"
        raise UnreachableError(message) from error


def _range(data: Any, source: Source, piece: Piece, advance: Advance) -> Iterator[tuple[int, Row]]:
    assert piece.last is not None, "cut between rows"
    columns = columns_to_read(data.column_names, source)
    table = (data if columns is None else data.select_columns(columns)).with_format("arrow")
    for first in range(piece.first, piece.last, ROWS):
        last = min(first + ROWS, piece.last)
        yield from enumerate(python_rows(table[first:last], str(piece)), first + 1)
        advance(piece.size * (last - first) / (piece.last - piece.first))


def _row_pieces(kind: str, path: str, data: Any, source: Source, task_bytes: int) -> Iterator[Piece]:
    refuse_schema(data.features.arrow_schema, source, path)
    if not (rows := len(data)):
        raise InputError(f"{path}: no rows in it.")
    each = max(1, data.data.nbytes // max(1, len(data.data)))
    step = max(1, task_bytes // each)
    for first in range(0, rows, step):
        last = min(first + step, rows)
        yield Piece(kind, path, (last - first) * each, first, last)


def _saved(source: Source) -> Any:
    from datasets import DatasetDict, load_from_disk

    try:
        data = load_from_disk(source.place)
    except Exception as error:  # damage shows in as many ways as Arrow and JSON have
        raise InputError(f"{source.place}: not a readable saved dataset {_why(error)}") from error
    if isinstance(data, DatasetDict):
        if source.split not in data:
            raise InputError(f"{source.place}: no split {source.split!r} (found {', '.join(map(repr, data))}).")
        data = data[source.split]
    return data


def _hub(source: Source) -> Any:
    from datasets import load_dataset

    assert source.hub_id is not None
    if os.environ.get("HF_HUB_OFFLINE") == "1" and not Path(source.hub_id).is_dir():
        raise UnreachableError(f"{source.hub_id} cannot be read (HF_HUB_OFFLINE is 1)")
    try:
        return load_dataset(
            source.hub_id, source.subset, split=source.split, revision=source.revision, streaming=source.streaming
        )
    except Exception as error:  # the hub client fails in many ways: no network, gated, gone, another layout
        raise UnreachableError(f"{source.hub_id} cannot be read {_why(error)}") from error


def _why(error: Exception) -> str:
    cause = error.__cause__ or error
    return f"({type(cause).__name__}: {' '.join(str(cause).split())[:200]})"
