"""Lists of objects, alone, wrapped and indented; and JSON that holds none."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from flexo.errors import InputError
from tests.flexmix.reading import STORIES, documents, texts, with_damage

ROWS: list[dict[str, Any]] = [{"text": story, "id": n, "tags": [{"a": n}]} for n, story in enumerate(STORIES)]
WRAPPED: dict[str, Any] = {
    "list": ROWS,
    "data": {"count": 40, "ok": True, "next": None, "data": ROWS},
    "deep": {"response": {"meta": {"rows": [{"name": "text", "type": "string"}]}, "docs": ROWS}, "time": 1.5},
    "after": {"data": ROWS, "errors": [], "pages": [1, 2, 3]},
    "pandas table": {"schema": {"fields": [{"name": "text"}]}, "data": ROWS},
}


@pytest.mark.parametrize("kind", WRAPPED)
@pytest.mark.parametrize("indent", [None, 1])
@pytest.mark.parametrize("name", ["a.json", "a.jsonl", "a.txt"])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_records_however_they_are_wrapped(
    tmp_path: Path, kind: str, indent: int | None, name: str, encoding: str
) -> None:
    path = tmp_path / name
    path.write_bytes(json.dumps(WRAPPED[kind], indent=indent).encode(encoding))
    assert texts(path) == STORIES


def test_a_list_longer_than_any_buffer(tmp_path: Path) -> None:
    rows = [{"text": f"{n} " + "x" * (n % 7) * 40_000, "meta": {"n": n / 3}} for n in range(50)]
    for data in (rows, {"n": 1, "rows": rows}):
        (tmp_path / "a.json").write_text(json.dumps(data, indent=2))
        assert texts(tmp_path / "a.json") == [row["text"] for row in rows]


def test_the_first_record_may_be_longer_than_what_is_looked_at(tmp_path: Path) -> None:
    long = [{"text": "x" * 300_000, "n": 1}, {"text": "short"}]
    for name, data in (("a.json", {"rows": long}), ("b.json", long)):
        (tmp_path / name).write_text(json.dumps(data))
        assert [len(text) for text in texts(tmp_path / name)] == [300_000, 5]
    (tmp_path / "c.jsonl").write_text(json.dumps({"meta": [{"a": 1}] * 30_000, "text": "behind"}) + "\n")
    assert texts(tmp_path / "c.jsonl") == ["behind"]


def test_damage_of_a_record_is_set_aside_and_damage_of_the_list_is_not(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    lines = [json.dumps(row) for row in ROWS]
    path.write_text("[" + ",".join([*lines[:3], '{"text": "a", "text": "b"}', "7", *lines[3:]]) + "]")
    found, aside = with_damage(path)
    assert found == STORIES and [one.at for one in aside] == ["record 4", "record 5"]
    with pytest.raises(InputError, match=r"a.json: record 4: the key 'text' is there twice"):
        texts(path)
    whole = json.dumps(ROWS)
    for data, said in (
        (whole[:-1], r"after record 40 \(the file ends too early\)"),
        (whole[:-40], r"after record 39 \(the file ends in the middle of it\)"),
        (whole.replace('"id": 7', '"id": seven'), r"after record 7 \(Expecting value\)"),
        (whole + "]", r"after record 40 \(something stands behind the end\)"),
        (whole.replace("}, {", "} {", 1), r"after record 1 \('{' where ',' was expected\)"),
    ):
        path.write_text(data)
        with pytest.raises(InputError, match=rf"a.json: not JSON {said}. Copy the file again, or mend it"):
            with_damage(path)
    path.write_bytes(whole.encode().replace(b"Story 9:", b"Story \xff:"))
    with pytest.raises(InputError, match=r"a.json: not JSON .* \(not UTF-8"):
        texts(path)


def test_two_lists_of_documents_are_not_read_as_one(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text(json.dumps({"train": ROWS, "test": ROWS[:3]}))
    with pytest.raises(
        InputError, match=r"a.json: two lists of documents in one object, train and test. .*jq -c '.test"
    ):
        texts(tmp_path / "a.json")


def test_an_answer_of_elasticsearch(tmp_path: Path) -> None:
    hits = {
        "took": 3,
        "hits": {"total": {"value": 40}, "hits": [{"_id": n, "_source": row} for n, row in enumerate(ROWS)]},
    }
    (tmp_path / "a.json").write_text(json.dumps(hits))
    assert [one.text for one in documents(tmp_path / "a.json", text="_source.text")] == STORIES


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (json.dumps(ROWS[0], indent=2), "JSON objects that are not one a line. Write one object a line, for example"),
        ("\n".join(json.dumps(row, indent=2) for row in ROWS), "JSON objects that are not one a line"),
        (json.dumps({"text": dict(enumerate(STORIES))}), "JSON by columns, as pandas writes it unless told otherwise"),
        (json.dumps({"id": {"0": 1}, "text": {"0": "a"}}, indent=1), "JSON by columns"),
        (json.dumps({"text": STORIES, "id": [1, 2]}), "JSON by columns"),
        (json.dumps({"name": "x", "sizes": [1, 2]}), "a JSON object, and neither it nor the lists in it have the"),
        (json.dumps({"name": "x", "parts": [{"body": "a"}]}, indent=1), "a JSON object, and neither it nor the lists"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("name", ["a.json", "a.jsonl"])
def test_json_that_holds_no_records_is_named(tmp_path: Path, text: str, said: str, name: str) -> None:
    path = tmp_path / name
    path.write_text(text)
    if name == "a.jsonl" and "\n" not in text and "by columns" not in said:
        said = "line 1: no column 'text' (found"  # one object on one line is JSON lines
    with pytest.raises(InputError, match=re.escape(f"{path}: {said}")):
        texts(path)


def test_lists_of_other_things_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_text('["one", "two"]')
    with pytest.raises(InputError, match=r"a.json: record 1: str, expected an object with the column 'text'"):
        texts(path)
    path.write_text('[{"body": "one"}]')
    with pytest.raises(InputError, match=r"a.json: record 1: no column 'text' \(found 'body'\). Name the one that"):
        texts(path)
    path.write_text("[]")
    assert texts(path) == []


def test_markdown_that_begins_with_a_bracket_is_text(tmp_path: Path) -> None:
    for n, text in enumerate(
        ("[A link](https://example.org) to it.", "{% raw %} of a template", "{\n  a: 1 }", "[1] Note")
    ):
        (tmp_path / f"{n}.md").write_text(text)
        assert texts(tmp_path / f"{n}.md") == [text]
