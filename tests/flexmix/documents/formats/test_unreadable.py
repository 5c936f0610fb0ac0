"""What is no text is named, with what to do; in a folder it is left out, unless it stands for documents."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from flexmix.documents.reading import cut_into_tasks
from flexmix.documents.source import Source
from flexo.errors import InputError
from tests.flexmix.reading import STORIES, texts
from tests.flexmix.text import write_jsonl

NOISE = bytes(range(256)) * 4
KINDS = {
    "a PDF document. Turn it into text first": b"%PDF-1.7\n%\xe2\xe3\xcf\xd3\n1 0 obj\n<< /Type /Catalog >>\nendobj\n",
    "a document in Rich Text Format": b"{\\rtf1\\ansi Hello}",
    "a document of an old Microsoft Office": b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1" + NOISE,
    "a SQLite database. Export it as CSV, Parquet or JSON lines": b"SQLite format 3\0" + NOISE,
    "an HDF5 file": b"\x89HDF\r\n\x1a\n" + NOISE,
    "an ORC table": b"ORC" + NOISE,
    "an Avro file": b"Obj\x01" + NOISE,
    "a numpy array": b"\x93NUMPY\x01\0" + NOISE,
    "a Python pickle": b"\x80\x04\x95" + NOISE,
    "a tar archive. Unpack it first": b"a.txt".ljust(257, b"\0") + b"ustar\0" + NOISE,
    "a 7z archive": b"7z\xbc\xaf\x27\x1c" + NOISE,
    "a RAR archive": b"Rar!\x1a\x07\1\0" + NOISE,
    "an lz4 file": b"\x04\x22\x4d\x18" + NOISE,
    "a picture": b"\x89PNG\r\n\x1a\n" + NOISE,
    "a recording": b"ID3\3" + NOISE,
    "an encrypted file. Decrypt it first": b"-----BEGIN PGP MESSAGE-----\n\nhQEMA\n",
    "of a kind that is not known here": NOISE,
}
STANDS_FOR_TEXT = {
    "a Git LFS pointer to a file of 4,711 bytes, not the file itself. Fetch it with git lfs pull": (
        b"version https://git-lfs.github.com/spec/v1\noid sha256:" + b"ab" * 32 + b"\nsize 4711\n"
    ),
    "a git-annex pointer, not the file itself. Fetch it with git annex get": (
        b"/annex/objects/SHA256E-s4711--abcdef.jsonl\n"
    ),
    "zero bytes and nothing else, as a copy that was interrupted leaves them. Copy the file again": b"\0" * 4096,
}
PAGES = {
    "an HTML page, perhaps of a login": b"<!DOCTYPE html>\n<html><body>Please sign in</body></html>\n",
    "an HTML page": b"\xef\xbb\xbf\n<!-- saved -->\n<HTML lang=en>\n<head>",
    "an HTML page, perhaps": b'<?xml version="1.0"?>\n<!DOCTYPE html PUBLIC "-//W3C//DTD XHTML 1.0">\n<html>',
    "an XML file, perhaps an error": b'<?xml version="1.0"?>\n<Error><Code>AccessDenied</Code></Error>',
}
ALL = KINDS | STANDS_FOR_TEXT | PAGES


@pytest.mark.parametrize("said", ALL)
@pytest.mark.parametrize("name", ["a.jsonl", "a.parquet", "a.csv", "a"])
def test_what_is_named_by_itself_is_refused_with_what_it_is(tmp_path: Path, said: str, name: str) -> None:
    (tmp_path / name).write_bytes(ALL[said])
    with pytest.raises(InputError, match=f"^{re.escape(str(tmp_path / name))}: {re.escape(said)}"):
        texts(tmp_path / name)


@pytest.mark.parametrize("said", ALL)
def test_in_a_folder_it_is_left_out_by_name_unless_it_stands_for_documents(tmp_path: Path, said: str) -> None:
    write_jsonl(tmp_path / "in/data.jsonl", STORIES)
    (tmp_path / "in/other.bin").write_bytes(ALL[said])
    if said in STANDS_FOR_TEXT:
        with pytest.raises(InputError, match=f"other.bin: {re.escape(said)}"):
            texts(tmp_path / "in")
    else:
        cut = cut_into_tasks(Source(str(tmp_path / "in")))
        assert [(one.file, one.why) for one in cut.not_read] == [
            (str(tmp_path / "in/other.bin"), said.partition(". ")[0] if ". " in said else cut.not_read[0].why)
        ]
        assert cut.not_read[0].why.startswith(said.partition(". ")[0]) and texts(tmp_path / "in") == STORIES
    (tmp_path / "in/other.bin").rename(tmp_path / "in/more.jsonl")
    with pytest.raises(InputError, match=f"more.jsonl: {re.escape(said)}"):
        texts(tmp_path / "in")


def test_text_under_the_name_of_a_table_is_named(tmp_path: Path) -> None:
    (tmp_path / "a.parquet").write_text("Just text.\n")
    with pytest.raises(InputError, match=r"a.parquet: plain text, and not Parquet. Copy the file again"):
        texts(tmp_path / "a.parquet")


def test_old_text_with_high_bytes_is_text_of_an_encoding_that_must_be_given(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes("Обычный русский текст.".encode("cp1251"))
    with pytest.raises(InputError, match=r"a.txt: line 1: not UTF-8 .*'Обычный.*' in cp1251.*--encoding NAME"):
        texts(tmp_path / "a.txt")
    assert texts(tmp_path / "a.txt", encoding="cp1251") == ["Обычный русский текст."]
    (tmp_path / "a.txt").write_bytes("Windows Notepad".encode("utf-16"))
    assert texts(tmp_path / "a.txt") == ["Windows Notepad"]
