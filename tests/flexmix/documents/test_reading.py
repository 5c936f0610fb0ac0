from __future__ import annotations

import gzip
import json
import random
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard
from datasets import Dataset, DatasetDict
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from flexmix.documents.hf_datasets import UnreachableError
from flexmix.documents.reading import cut_into_tasks, read
from flexmix.documents.source import Piece, Source
from flexo.errors import InputError
from tests.flexmix.text import TEXTS, write_jsonl

STORIES = [f"Story {n}: once upon a time there were {n} cats." for n in range(300)]


def cut(source: Source, task_bytes: int = 1 << 20) -> list[list[Piece]]:
    return cut_into_tasks(source, task_bytes).tasks


def texts(source: Source, task_bytes: int = 1 << 20) -> list[str]:
    """All texts of a source, task by task."""
    return [document.text for pieces in cut(source, task_bytes) for document in read(source, pieces)]


def write_parquet(path: Path, rows: Iterable[Any], column: str = "text", group: int = 50) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    rows = list(rows)
    pq.write_table(pa.table({"id": range(len(rows)), column: rows}), path, row_group_size=group)
    return path


def write_zst(path: Path, data: bytes) -> Path:
    path.write_bytes(zstandard.ZstdCompressor().compress(data))
    return path


# --- the same documents, however they lie


def test_every_form_gives_the_same_documents(tmp_path: Path) -> None:
    plain = write_jsonl(tmp_path / "a.jsonl", STORIES)
    packed = write_jsonl(tmp_path / "a.jsonl.gz", STORIES)
    zst = write_zst(tmp_path / "a.jsonl.zst", plain.read_bytes())
    parquet = write_parquet(tmp_path / "a.parquet", STORIES)
    (tmp_path / "notes/sub").mkdir(parents=True)
    for n, story in enumerate(STORIES):
        (tmp_path / ("notes/sub" if n >= 200 else "notes") / f"{n:03}.txt").write_text(story)
    Dataset.from_dict({"text": STORIES}).save_to_disk(tmp_path / "saved")
    DatasetDict({"train": Dataset.from_dict({"text": STORIES})}).save_to_disk(tmp_path / "saved-splits")
    write_parquet(tmp_path / "hub/data/train-00000-of-00002.parquet", STORIES[:100])
    write_parquet(tmp_path / "hub/data/train-00001-of-00002.parquet", STORIES[100:])
    places = [plain, packed, zst, parquet, *(tmp_path / n for n in ("notes", "saved", "saved-splits"))]
    for place in [*map(str, places), f"hub:{tmp_path / 'hub'}"]:
        assert texts(Source(place)) == STORIES, place
    assert len(cut(Source(f"hub:{tmp_path / 'hub'}"))) == 2  # a task for each file
    assert texts(Source(f"hub:{tmp_path / 'hub'}", streaming=False), 1000) == STORIES
    assert len(cut(Source(str(parquet)), 2000)) > 2 and len(cut(Source(str(tmp_path / "saved")), 2000)) > 2


def test_a_hub_repository_has_subsets_splits_and_columns(tmp_path: Path) -> None:
    card = """---
configs:
- config_name: tales
  data_files: [{split: train, path: tales/train.jsonl}, {split: extra, path: tales/extra.jsonl}]
- config_name: other
  data_files: [{split: train, path: other/train.jsonl}]
---
"""
    write_jsonl(tmp_path / "tales/train.jsonl", STORIES[:5], column="body")
    write_jsonl(tmp_path / "tales/extra.jsonl", STORIES[5:9], column="body")
    write_jsonl(tmp_path / "other/train.jsonl", TEXTS, column="body")
    (tmp_path / "README.md").write_text(card)
    hub = f"hub:{tmp_path}"
    assert texts(Source(hub, "body", subset="tales")) == STORIES[:5]
    assert texts(Source(hub, "body", subset="tales", split="extra")) == STORIES[5:9]
    assert texts(Source(hub, "body", subset="other")) == TEXTS
    with pytest.raises(UnreachableError, match=r"cannot be read \(ValueError: .*tales"):
        cut(Source(hub, "body", subset="poems"))
    with pytest.raises(UnreachableError, match="cannot be read"):
        cut(Source(hub, "body", subset="tales", split="none"))
    with pytest.raises(InputError, match=r"no column 'text' \(found 'body'\)"):
        texts(Source(hub, subset="tales"))


def test_the_hub_is_not_asked_when_offline(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(UnreachableError, match=r"some/where cannot be read \(HF_HUB_OFFLINE is 1\)"):
        cut(Source("hub:some/where"))


def test_a_limit_takes_the_first_documents(tmp_path: Path) -> None:
    write_jsonl(tmp_path / "a/1.jsonl", STORIES[:150])
    write_jsonl(tmp_path / "a/2.jsonl.gz", STORIES[150:])
    for place in (str(tmp_path / "a"), f"hub:{tmp_path / 'a'}"):
        source = Source(place, documents=170)
        assert len(cut(source, 1000)) == 1 and texts(source, 1000) == STORIES[:170]
    with pytest.raises(InputError, match="documents is 0, expected at least 1"):
        cut(Source(str(tmp_path / "a"), documents=0))


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=60, deadline=None)
@given(
    lines=st.lists(st.text(alphabet="ab é\n\u2028", max_size=12), max_size=20),
    end=st.booleans(),
    task_bytes=st.integers(1, 200),
)
def test_json_lines_are_cut_anywhere_without_loss(tmp_path: Path, lines: list[str], end: bool, task_bytes: int) -> None:
    path = tmp_path / "cut.jsonl"
    data = "\n".join(json.dumps({"text": line}, ensure_ascii=False) for line in lines) + ("\n" if end else "")
    path.write_text(data, encoding="utf-8")
    assert texts(Source(str(path)), task_bytes) == lines
    told: list[float] = []
    for pieces in cut(Source(str(path)), task_bytes):
        list(read(Source(str(path)), pieces, told.append))
    assert sum(told) == len(data.encode())


def test_small_files_share_a_task(tmp_path: Path) -> None:
    for n in range(10):
        write_jsonl(tmp_path / f"{n}.jsonl", STORIES[:10])
    size = (tmp_path / "0.jsonl").stat().st_size
    assert [len(pieces) for pieces in cut(Source(str(tmp_path)), 3 * size)] == [3, 3, 3, 1]


def test_text_beside_data_is_its_description(tmp_path: Path) -> None:
    write_jsonl(tmp_path / "a.jsonl", TEXTS)
    for name in ("README.md", "licence.txt", "scan.pdf", ".hidden.jsonl"):
        (tmp_path / name).write_text("not a document")
    assert texts(Source(str(tmp_path))) == TEXTS
    assert cut_into_tasks(Source(str(tmp_path))).not_read == [
        (f"{tmp_path}/.hidden.jsonl", "hidden"),
        (f"{tmp_path}/README.md", "text beside data, which it describes"),
        (f"{tmp_path}/licence.txt", "text beside data, which it describes"),
        (f"{tmp_path}/scan.pdf", "plain text; in a folder documents are .txt, .text, .md alone; name it to read it"),
    ]
    assert cut_into_tasks(Source(str(tmp_path / "a.jsonl"))).not_read == []


# --- what is wrong, and where


def test_places_without_text_are_refused(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "pdf").mkdir()
    (tmp_path / "pdf/a.pdf").touch()
    for place, said in (
        (tmp_path / "gone", "gone: no such file or folder."),
        ("org/name", "org/name: no such file or folder. If it is a dataset on the hub, write hub:org/name."),
        (tmp_path / "empty", "no text in a form that can be read (found nothing). Expected JSON lines, JSON, CSV"),
        (tmp_path / "pdf", "(found a.pdf (empty))"),
        (tmp_path / "pdf/a.pdf", "(found a.pdf (empty))"),
    ):
        with pytest.raises(InputError, match=re.escape(said)):
            cut(Source(str(place)))


def test_a_missing_column_is_refused_with_those_there_are(tmp_path: Path) -> None:
    write_jsonl(tmp_path / "a.jsonl", TEXTS, column="body")
    parquet = write_parquet(tmp_path / "a.parquet", TEXTS, column="body")
    Dataset.from_dict({"body": TEXTS, "n": range(4)}).save_to_disk(tmp_path / "saved")
    with pytest.raises(InputError, match=r"a.jsonl: line 1: no column 'text' \(found 'body'\)"):
        texts(Source(str(tmp_path / "a.jsonl")))
    with pytest.raises(InputError, match=r"a.parquet: no column 'text' \(found 'body', 'id'\)"):
        cut(Source(str(parquet)))
    with pytest.raises(InputError, match=r"a.parquet: no column 'lang' \(found 'body', 'id'\)"):
        cut(Source(str(parquet), "body", where={"lang": "en"}))
    with pytest.raises(InputError, match=r"saved: no column 'text' \(found 'body', 'n'\)"):
        cut(Source(str(tmp_path / "saved")))


def test_a_column_without_text_is_refused_and_null_is_an_empty_document(tmp_path: Path) -> None:
    path = tmp_path / "mixed.jsonl"
    path.write_text('{"text": "a"}\n{"text": null}\n\n{"text": 7}\n')
    documents = read(Source(str(path)), cut(Source(str(path)))[0])
    assert [next(documents).text, next(documents).text] == ["a", ""]
    with pytest.raises(InputError, match=r"mixed.jsonl: line 4: the column 'text' holds int, expected text"):
        next(documents)
    numbers = write_parquet(tmp_path / "numbers.parquet", [1, 2])
    with pytest.raises(InputError, match=r"numbers.parquet: the column 'text' holds int64, expected text"):
        cut(Source(str(numbers)))
    assert texts(Source(str(write_parquet(tmp_path / "some.parquet", ["a", None])))) == ["a", ""]
    Dataset.from_dict({"text": [["a"], ["b"]]}).save_to_disk(tmp_path / "lists")
    with pytest.raises(InputError, match=r"lists: the column 'text' holds .*, expected text"):
        cut(Source(str(tmp_path / "lists")))
    write_jsonl(tmp_path / "hub/train.jsonl", ["a"])
    with (tmp_path / "hub/train.jsonl").open("a") as file:
        file.write('{"text": {"a": 7}}\n')
    with pytest.raises(InputError, match=r"hub: row 2: the column 'text' holds dict, expected text"):
        texts(Source(f"hub:{tmp_path / 'hub'}"))


@pytest.mark.parametrize("suffix", [".gz", ".zst"])
def test_damaged_compression_is_refused_with_how_far(tmp_path: Path, suffix: str) -> None:
    lines = [f"{n} {n * 7919 % 10007}" for n in range(20_000)]
    plain = write_jsonl(tmp_path / "a.jsonl", lines).read_bytes()
    whole = gzip.compress(plain) if suffix == ".gz" else zstandard.ZstdCompressor().compress(plain)
    path = tmp_path / f"a.jsonl{suffix}"
    middle = len(whole) // 2
    for data in (whole[:middle], whole[:middle] + bytes(40) + whole[middle + 40 :], whole[:-1]):
        path.write_bytes(data)
        found: list[str] = []
        with pytest.raises(InputError) as caught:
            found.extend(document.text for document in read(Source(str(path)), cut(Source(str(path)))[0]))
        said = str(caught.value)
        assert found == lines[: len(found)]
        assert re.match(
            rf"{re.escape(str(path))}: damaged \w+ after line {len(found)} \(.*\), [\d,]+ bytes into a file of "
            rf"{len(data):,}\. Copy",
            said,
        ) or "not JSON" in said or "not UTF-8" in said, said  # fmt: skip
    path.write_bytes(whole * 2)  # several members or frames are one file
    assert texts(Source(str(path))) == lines * 2


def test_invalid_utf8_is_refused_with_its_line(tmp_path: Path) -> None:
    note = tmp_path / "notes/a.txt"
    note.parent.mkdir()
    note.write_bytes(b"first\nsecond caf\xe9\n")
    with pytest.raises(InputError, match=r"a.txt: line 2: not UTF-8 \(byte 0xe9 at column 11\)"):
        texts(Source(str(tmp_path / "notes")))
    note.write_bytes(b"\xef\xbb\xbfwith a mark")
    assert texts(Source(str(tmp_path / "notes"))) == ["with a mark"]
    path = write_jsonl(tmp_path / "a.jsonl", STORIES)
    path.write_bytes(path.read_bytes() + b'{"text": "caf\xe9"}\n')
    with pytest.raises(InputError, match=r"a.jsonl: line 301: not UTF-8 \(byte 0xe9 at column 14\)"):
        texts(Source(str(path)), 1000)  # counted in the file, not in the piece


def test_damaged_tables_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    path.write_bytes(b"PAR1 and no more")
    with pytest.raises(InputError, match=r"a.parquet: not a readable Parquet file"):
        cut(Source(str(path)))
    write_parquet(path, STORIES, group=300)
    source, data = Source(str(path)), bytearray(path.read_bytes())
    pieces = cut(source)[0]
    data[len(data) // 2 : len(data) // 2 + 500] = bytes(500)  # in the text, which is the last column
    path.write_bytes(data)
    with pytest.raises(InputError, match=r"a.parquet: damaged after row \d+ "):
        list(read(source, pieces))
    saved = tmp_path / "saved"
    Dataset.from_dict({"text": STORIES}).save_to_disk(saved)
    with pytest.raises(InputError, match=r"splits: no split 'test' \(found 'train'\)"):
        DatasetDict({"train": Dataset.from_dict({"text": STORIES})}).save_to_disk(tmp_path / "splits")
        cut(Source(str(tmp_path / "splits"), split="test"))
    next(saved.glob("*.arrow")).write_bytes(b"no")
    with pytest.raises(InputError, match="saved: not a readable saved dataset"):
        cut(Source(str(saved)))


def test_reading_takes_constant_memory(tmp_path: Path) -> None:
    import tracemalloc

    zst = write_zst(
        tmp_path / "a.jsonl.zst",
        write_jsonl(tmp_path / "a.jsonl", (random.Random(n).randbytes(500).hex() for n in range(5_000))).read_bytes(),
    )
    parquet = write_parquet(tmp_path / "a.parquet", ("word " * 200 for _ in range(5_000)), group=5_000)
    for path in (zst, parquet):
        source = Source(str(path))
        cut(source)  # imports are no part of it
        tracemalloc.start()
        assert (
            sum(len(document.text) for document in read(source, [p for pieces in cut(source) for p in pieces]))
            == 5_000_000
        )
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak < 2_500_000, path


def test_pieces_of_a_plan_are_plain_data(tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "a.jsonl", TEXTS)
    size = path.stat().st_size
    assert cut(Source(str(path))) == [[Piece("JSON lines", str(path), size, 0, size)]]
