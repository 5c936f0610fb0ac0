"""Rows of Parquet files, of datasets saved to disk, and of datasets on the hub, for `flexmix.documents.reading`."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from flexmix.documents.source import Piece, Source, refuse_missing, refuse_type
from flexo.console import Advance
from flexo.errors import InputError

ROWS = 64  # read at once

Row = dict[str, Any]


class UnreachableError(InputError):
    """A dataset cannot be had: no network, gated, gone, or of a layout that `datasets` does not know."""


def saved_pieces(source: Source, task_bytes: int) -> Iterator[Piece]:
    """A dataset saved to disk, cut between rows."""
    yield from _row_pieces("saved", source.place, _saved(source), source, task_bytes)


def hub_pieces(source: Source, task_bytes: int) -> Iterator[Piece]:
    """A hub dataset: its files when it is streamed, ranges of rows when it was downloaded."""
    assert source.hub_id is not None
    data = _hub(source)
    if not source.streaming:
        yield from _row_pieces("hub", source.hub_id, data, source, task_bytes)
        return
    if data.column_names is not None:
        refuse_missing(data.column_names, source, source.hub_id)
    for shard in range(data.num_shards):
        yield Piece("hub", source.hub_id, 0, shard, data.num_shards)


def saved_rows(source: Source, piece: Piece, advance: Advance) -> Iterator[tuple[int, Row]]:
    yield from _range(_saved(source), piece, advance)


def hub_rows(source: Source, piece: Piece, advance: Advance) -> Iterator[tuple[int, Row]]:
    """The rows of a shard or range of a hub dataset; raises `UnreachableError` if it goes away on the way."""
    data = _hub(source)
    if not source.streaming:
        yield from _range(data, piece, advance)
        return
    assert piece.last is not None
    number = 0
    try:
        for number, row in enumerate(data.shard(num_shards=piece.last, index=piece.first), 1):
            yield number, row
    except InputError:
        raise
    except Exception as error:
        message = f"{piece.path} cannot be read after row {number} of shard {piece.first} {_why(error)}"
        raise UnreachableError(message) from error


def _range(data: Any, piece: Piece, advance: Advance) -> Iterator[tuple[int, Row]]:
    assert piece.last is not None
    for first in range(piece.first, piece.last, ROWS):
        last = min(first + ROWS, piece.last)
        columns = data[first:last]
        for n in range(last - first):
            yield first + n + 1, {name: values[n] for name, values in columns.items()}
        advance(piece.size * (last - first) / (piece.last - piece.first))


def _row_pieces(kind: Any, path: str, data: Any, source: Source, task_bytes: int) -> Iterator[Piece]:
    refuse_missing(data.column_names, source, path)
    feature = data.features[source.text]
    refuse_type(str(getattr(feature, "dtype", type(feature).__name__)), source, path)
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
