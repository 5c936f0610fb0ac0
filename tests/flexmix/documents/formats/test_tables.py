"""Parquet and Arrow: every type that text comes in, and what is refused."""

from __future__ import annotations

import datetime
import gzip
import re
from decimal import Decimal
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.feather
import pyarrow.ipc
import pyarrow.parquet as pq
import pytest

from flexmix.documents.reading import cut_into_tasks
from flexmix.documents.source import Source
from flexo.errors import InputError
from tests.flexmix.reading import STORIES, documents, texts, with_damage


def write(path: Path, table: pa.Table, rows: int = 10) -> Path:
    """A table as Parquet, an Arrow file or stream, or Feather, by its name."""
    if path.suffix == ".parquet":
        pq.write_table(table, path, row_group_size=rows)
    elif path.suffix == ".feather":
        pyarrow.feather.write_feather(table, str(path), chunksize=rows)
    else:
        opener = pa.ipc.new_file if path.suffix == ".arrow" else pa.ipc.new_stream
        with opener(str(path), table.schema) as writer:
            writer.write_table(table, rows)
    return path


KINDS = ["a.parquet", "a.arrow", "a.stream", "a.feather"]
STRINGS = {
    "string": pa.string(), "large": pa.large_string(), "view": pa.string_view(), "binary": pa.binary(),
    "large binary": pa.large_binary(), "binary view": pa.binary_view(),
}  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("string", STRINGS)
def test_every_kind_of_string(tmp_path: Path, kind: str, string: str) -> None:
    values: list[Any] = [story.encode() if "binary" in string else story for story in STORIES]
    path = write(tmp_path / kind, pa.table({"id": range(40), "text": pa.array(values, STRINGS[string])}))
    assert texts(path) == STORIES
    assert texts(path.rename(tmp_path / "a.jsonl"), task_bytes=500) == STORIES, "the content says what it is"


@pytest.mark.parametrize("kind", KINDS)
def test_a_table_is_cut_between_its_parts_and_counts_its_rows(tmp_path: Path, kind: str) -> None:
    values: list[bytes | None] = [story.encode() for story in STORIES]
    values[33], values[5] = b"caf\xe9", None
    path = write(tmp_path / kind, pa.table({"n": range(40), "text": pa.array(values, pa.binary())}))
    parts = len(cut_into_tasks(Source(str(path)), 400).tasks)
    assert parts == 1 if kind == "a.stream" else parts > 2
    with pytest.raises(InputError, match=rf"{kind}: row 34: the column 'text' holds bytes that are not UTF-8"):
        texts(path, task_bytes=400)
    found, aside = with_damage(path, task_bytes=400)
    assert found == [*STORIES[:5], "", *STORIES[6:33], *STORIES[34:]] and [one.at for one in aside] == ["row 34"]


@pytest.mark.parametrize("kind", KINDS)
def test_dictionaries_and_repeated_values(tmp_path: Path, kind: str) -> None:
    path = write(tmp_path / kind, pa.table({"text": pa.array(STORIES).dictionary_encode()}))
    assert texts(path) == STORIES
    if kind in ("a.arrow", "a.stream"):
        runs = pa.RunEndEncodedArray.from_arrays(pa.array([2, 3, 5], pa.int32()), pa.array(["a", "b", "c"]))
        path = write(tmp_path / kind, pa.table({"text": runs}))
        assert texts(path) == ["a", "a", "b", "c", "c"]


@pytest.mark.parametrize("kind", KINDS)
def test_columns_beside_the_text_may_be_anything(tmp_path: Path, kind: str) -> None:
    """They are not read; and all of them are where a function of the owner may ask."""
    table = pa.table(
        {
            "text": STORIES, "where": [[{"page": n, "box": [1.0, 2.0]}] for n in range(40)],
            "when": [datetime.datetime(2024, 1, 1)] * 40, "price": [Decimal("1.50")] * 40,
            "map": pa.array([[("a", 1)]] * 40, pa.map_(pa.string(), pa.int64())), "none": pa.nulls(40),
            "nested": [{"a": {"b": n}} for n in range(40)],
        }
    )  # fmt: skip
    path = write(tmp_path / kind, table)
    assert [list(one.columns) for one in documents(path)] == [["text"]] * 40
    found = documents(path, keep=("builtins:bool",))
    assert found[7].columns["where"] == [{"page": 7, "box": [1.0, 2.0]}] and found[7].columns["nested"]["a"]["b"] == 7


@pytest.mark.parametrize("kind", KINDS)
def test_a_field_of_a_column(tmp_path: Path, kind: str) -> None:
    rows = [{"body": story, "n": n} for n, story in enumerate(STORIES)]
    path = write(tmp_path / kind, pa.table({"doc": rows}))
    assert texts(path, text="doc.body") == STORIES
    with pytest.raises(
        InputError, match=r"the column 'doc' holds struct<.*expected text. Name one .*: doc.body, doc.n."
    ):
        texts(path, text="doc")
    with pytest.raises(InputError, match=r"no column 'doc.title' \(found 'doc'\)"):
        texts(path, text="doc.title")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("values", "said"),
    [
        ([1, 2], "holds int64, expected text. Name the one that holds the text with --text."),
        ([["a"], ["b", "c"]], "expected text. Join the parts of each document into one text first."),
        ([1.5, None], "holds double, expected text."),
        ([True, False], "holds bool, expected text."),
    ],
)
def test_columns_that_hold_no_text_are_refused_before_reading(
    tmp_path: Path, kind: str, values: list[Any], said: str
) -> None:
    path = write(tmp_path / kind, pa.table({"text": values}))
    with pytest.raises(InputError, match=re.escape(said)):
        cut_into_tasks(Source(str(path)))


@pytest.mark.parametrize("kind", KINDS[:3])
def test_a_column_that_is_there_twice_is_refused(tmp_path: Path, kind: str) -> None:
    table = pa.Table.from_arrays([pa.array(STORIES), pa.array(STORIES)], names=["text", "text"])
    with pytest.raises(InputError, match=r"the column 'text' is there 2 times"):
        texts(write(tmp_path / kind, table))


def test_a_column_of_nothing_is_empty_documents(tmp_path: Path) -> None:
    assert texts(write(tmp_path / "a.parquet", pa.table({"text": pa.nulls(3)}))) == [""] * 3


def test_tables_that_are_damaged_or_packed_once_more_are_refused(tmp_path: Path) -> None:
    for kind, name in (("a.parquet", "Parquet"), ("a.arrow", "Arrow")):
        path = write(tmp_path / kind, pa.table({"text": STORIES * 50}))
        data = path.read_bytes()
        path.write_bytes(data[: len(data) // 2])
        with pytest.raises(InputError, match=rf"{kind}: not a readable {name} file \(.*\). Copy the file again"):
            texts(path)
        path.write_bytes(gzip.compress(data))
        with pytest.raises(InputError, match=rf"{kind}: a {name} file packed with gzip. Unpack it first"):
            texts(path)
    path = write(tmp_path / "a.stream", pa.table({"text": STORIES * 50}))
    path.write_bytes(path.read_bytes()[:-3000])
    with pytest.raises(InputError, match=r"a.stream: damaged after row \d+ \(.*\). Copy the file again"):
        texts(path)
