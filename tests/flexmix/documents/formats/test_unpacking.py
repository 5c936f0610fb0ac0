"""Content decides, not the name: every packing, more than one of them, and archives."""

from __future__ import annotations

import bz2
import gzip
import json
import lzma
import re
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
import zstandard

from flexmix.documents.formats.unpacking import Stored
from flexo.errors import InputError
from tests.flexmix.reading import STORIES, texts

LINES = "".join(json.dumps({"text": story, "id": n}) + "\n" for n, story in enumerate(STORIES)).encode()
PACK: dict[str, Callable[[bytes], bytes]] = {
    "plain": bytes,
    "gzip": gzip.compress,
    "zstd": zstandard.ZstdCompressor().compress,
    "bz2": bz2.compress,
    "xz": lzma.compress,
}


@pytest.mark.parametrize("packing", PACK)
@pytest.mark.parametrize(
    "name", ["a.jsonl", "a.jsonl.gz", "a.jsonl.zst", "a.JSONL.BZ2", "a.xz", "a", "a.txt", "a.csv.gz"]
)
def test_every_packing_under_every_name(tmp_path: Path, packing: str, name: str) -> None:
    (tmp_path / name).write_bytes(PACK[packing](LINES))
    assert texts(tmp_path / name) == STORIES
    with Stored(tmp_path / name).open() as content:
        assert content.packed == (() if packing == "plain" else (packing,))


@pytest.mark.parametrize("packing", list(PACK)[1:])
def test_members_of_a_packing_one_after_the_other_are_one_file(tmp_path: Path, packing: str) -> None:
    half = LINES.index(b"\n", len(LINES) // 2) + 1
    (tmp_path / "a.jsonl").write_bytes(PACK[packing](LINES[:half]) + PACK[packing](LINES[half:]))
    assert texts(tmp_path / "a.jsonl") == STORIES


def test_what_is_packed_twice_is_unpacked_twice(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl.gz").write_bytes(gzip.compress(gzip.compress(LINES)))
    (tmp_path / "b.jsonl.gz").write_bytes(gzip.compress(PACK["zstd"](LINES)))
    assert texts(tmp_path / "a.jsonl.gz") == texts(tmp_path / "b.jsonl.gz") == STORIES


@pytest.mark.parametrize("packing", list(PACK)[1:])
@pytest.mark.parametrize("kept", [0.5, 0.98])
def test_what_ends_too_early_is_refused_with_what_was_read(tmp_path: Path, packing: str, kept: float) -> None:
    """At the beginning, when it is recognised, or on the way."""
    data = PACK[packing](
        "".join(json.dumps({"text": f"{n} {n * 7919 % 10007}"}) + "\n" for n in range(30_000)).encode()
    )
    path = tmp_path / "a.jsonl"
    path.write_bytes(data[: int(kept * len(data))])
    with pytest.raises(InputError) as caught:
        texts(path)
    assert re.fullmatch(
        rf"{path}: damaged {packing} (after line \d+|at the beginning) \(.+\), [\d,]+ bytes into a file of [\d,]+\. "
        r"Copy the file again\.",
        str(caught.value),
    ), caught.value  # fmt: skip


def write_zip(path: Path, members: dict[str, bytes], **options: int) -> Path:
    with zipfile.ZipFile(path, "w", **options) as archive:
        for name, data in members.items():
            archive.writestr(name, data)
    return path


def test_an_archive_is_a_folder_of_files(tmp_path: Path) -> None:
    half = LINES.index(b"\n", len(LINES) // 2) + 1
    members = {
        "data/a.jsonl": LINES[:half], "data/b.jsonl.gz": gzip.compress(LINES[half:]), "README.md": b"about",
        "__MACOSX/data/._a.jsonl": b"\0\5\26\7", ".DS_Store": b"\0\0",
    }  # fmt: skip
    for method in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA):
        path = write_zip(tmp_path / f"{method}.jsonl", members, compression=method)
        assert texts(path) == STORIES
    notes = write_zip(tmp_path / "notes.zip", {f"{n:02}.txt": story.encode() for n, story in enumerate(STORIES)})
    assert texts(notes) == STORIES
    (tmp_path / "in").mkdir()
    notes.rename(tmp_path / "in/notes.zip")
    assert texts(tmp_path / "in") == STORIES


def test_archives_that_are_something_else_are_named(tmp_path: Path) -> None:
    for members, said in (
        ({"[Content_Types].xml": b"", "word/document.xml": b""}, "a Word document. Turn it into text first"),
        ({"[Content_Types].xml": b"", "xl/workbook.xml": b""}, "an Excel workbook. Save its sheet as CSV first"),
        ({"mimetype": b"application/epub+zip"}, "a document of LibreOffice or its like"),
        ({"archive/data.pkl": b"", "archive/data/0": b""}, "a file of PyTorch"),
        ({"x.npy": b"\x93NUMPY"}, "numpy arrays"),
    ):
        path = write_zip(tmp_path / "a.jsonl", members)
        with pytest.raises(InputError, match=re.escape(f"{path}: {said}")):
            texts(path)


def test_archives_that_cannot_be_opened_are_refused(tmp_path: Path) -> None:
    path = write_zip(tmp_path / "a.zip", {"a.jsonl": LINES})
    data = bytearray(path.read_bytes())
    encrypted = bytearray(data)
    encrypted[6] |= 1  # the flag of the member, and of its entry in the directory
    encrypted[data.rindex(b"PK\1\2") + 8] |= 1
    path.write_bytes(encrypted)
    with pytest.raises(InputError, match=r"a.zip/a.jsonl: cannot be unpacked \(it is encrypted\). Unpack the archive"):
        texts(path)
    path.write_bytes(data[: len(data) // 2])
    with pytest.raises(InputError, match=r"a.zip: damaged zip \(.*\). Copy the file again"):
        texts(path)
    data[60:80] = bytes(20)
    path.write_bytes(data)
    with pytest.raises(InputError, match=r"a.zip/a.jsonl: damaged zip .* \(Bad CRC-32|line 1"):
        texts(path)


def test_text_that_begins_like_a_packing_is_text(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("BZh is how a bz2 file begins.")
    (tmp_path / "b.txt").write_text("PK is short for Peacekeeper.")
    assert texts(tmp_path) == ["BZh is how a bz2 file begins.", "PK is short for Peacekeeper."]
