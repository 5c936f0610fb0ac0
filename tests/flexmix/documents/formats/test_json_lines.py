"""JSON lines in any encoding, with any line ends, whole or with damaged lines."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from flexo.errors import InputError
from tests.flexmix.reading import STORIES, texts, with_damage

MANY = [*STORIES, "naïve 😀 數據\u2028 is no end of line", "two\r\nlines, escaped"]
LINES = "".join(json.dumps({"text": text, "id": n}, ensure_ascii=False) + "\n" for n, text in enumerate(MANY))


@pytest.mark.parametrize("name", ["a.jsonl", "a.JSONL", "a.ndjson", "a.json", "a.txt", "a"])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "utf-32"])
@pytest.mark.parametrize("end", ["\n", "\r\n", "\r", "\r\r\n", "\n\n"])
def test_every_encoding_and_line_end(tmp_path: Path, name: str, encoding: str, end: str) -> None:
    path = tmp_path / name
    path.write_bytes(LINES.replace("\n", end).encode(encoding))
    assert texts(path) == MANY
    assert texts(path, task_bytes=200) == MANY


def test_a_mark_in_the_middle_is_that_of_a_file_that_was_appended(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(LINES.encode("utf-8-sig") * 2)
    assert texts(path, task_bytes=500) == MANY * 2


def test_an_encoding_is_taken_as_given_and_not_guessed(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    german = [{"text": f"Die {n}. Straße wäre schöner."} for n in range(20)]
    path.write_bytes("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in german).encode("cp1252"))
    with pytest.raises(InputError) as caught:
        texts(path)
    assert re.search(
        r"a.jsonl: line 1: not UTF-8 \(byte 0xdf at column 22\)\. It would be '[^']*Straße w[^']*' in cp1252, .*"
        r"name it: flexo-data prepare --encoding NAME", str(caught.value)
    ), caught.value  # fmt: skip
    assert texts(path, encoding="cp1252") == [row["text"] for row in german]
    for name in ("klingon", "hex"):
        with pytest.raises(InputError, match=f"--encoding {name}: there is no such encoding"):
            texts(path, encoding=name)
    path.write_bytes("".join(json.dumps({"text": "数据" * 9}, ensure_ascii=False)).encode("gb18030") + b"\xff")
    with pytest.raises(
        InputError, match=r"a.jsonl: not gb18030 after line \d+ \(.*\). Copy the file again, or give its"
    ):
        texts(path, encoding="gb18030")


def damaged(line: bytes, at: int = 20) -> bytes:
    lines = LINES.encode().splitlines(keepends=True)
    return b"".join([*lines[:at], line + b"\n", *lines[at:]])


@pytest.mark.parametrize(
    ("line", "said"),
    [
        (b'{"text": "half of a pair \\ud83d here"}', "half of a surrogate pair"),
        (b'{"text": "caf\xe9"}', "not UTF-8 (byte 0xe9 at column 14)"),
        (b'{"text": "not closed', "not JSON (Unterminated string"),
        (b'{"text": "a"} trailing', "not JSON (Extra data"),
        (b"plain prose", "not JSON (Expecting value"),
        (b"\0" * 40, "40 zero bytes in it, as a write that was interrupted leaves them"),
        (b'{"text": "a", "text": "b"}', "the key 'text' is there twice in one object"),
        (b'{"text": "a", "meta": {"by": {"x": 1, "y": 2, "x": 3}}}', "the key 'x' is there twice in one object"),
        (b'{"body": "a"}', "no column 'text' (found 'body'). Name the one that holds the text with --text."),
        (b'{"text": {"a": 1}}', "the column 'text' holds dict, expected text."),
        (b'["text"]', "list, expected an object with the column 'text'."),
        (b"[" * 50_000, "not JSON (maximum recursion depth"),
        (b'{"text": "a", "n": ' + b"9" * 5000 + b"}", "not JSON (Exceeds the limit"),
        (b'{"text": "raw\ttab"}', "not JSON (Invalid control character"),
    ],
)
@pytest.mark.parametrize("at", [0, 1, 20, len(MANY)])
def test_a_damaged_line_is_refused_or_set_aside(tmp_path: Path, line: bytes, said: str, at: int) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(damaged(line, at))
    with pytest.raises(InputError, match=rf"^{re.escape(f'{path}: line {at + 1}: ')}.*{re.escape(said)}"):
        texts(path, task_bytes=300)
    found, aside = with_damage(path, task_bytes=300)
    assert found == MANY
    assert [(one.file, one.at, one.damaged.lines) for one in aside] == [(str(path), f"line {at + 1}", 1)]
    assert said in aside[0].damaged.reason and aside[0].damaged.beginning


def test_a_file_that_was_cut_off_says_so(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(LINES.encode()[:-20])
    with pytest.raises(
        InputError, match=rf"line {len(MANY)}: not JSON .* The file ends in this line: it may have been"
    ):
        texts(path)
    assert with_damage(path)[0] == MANY[:-1]


def test_null_is_no_text_and_no_damage(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(damaged(b'{"text": null}'))
    assert texts(path) == [*MANY[:20], "", *MANY[20:]]


def test_a_field_of_a_column(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text('{"doc": {"body": "one", "n": 1}}\n{"doc.body": "two"}\n{"doc": {"body": null}}\n{"doc": 3}\n')
    found, aside = with_damage(path, text="doc.body")
    assert found == ["one", "two", ""] and aside[0].damaged.reason == "no column 'doc.body' (found 'doc')."


def test_prose_under_the_name_of_data_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text("Once upon a time\nthere was a boat.\n")
    with pytest.raises(InputError, match=r"a.jsonl: plain text, and not JSON lines. .* rename it to end in .txt"):
        texts(path)


def test_a_file_of_nothing_has_no_documents(tmp_path: Path) -> None:
    for n, data in enumerate((b"", b"\n\n", b"\xef\xbb\xbf", b" \r\n")):
        (tmp_path / f"{n}.jsonl").write_bytes(data)
        assert texts(tmp_path / f"{n}.jsonl") == []
