"""Whose each document is, by a column."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from flexmix.documents.units import units_of
from flexo.errors import InputError


def lines(path: Path, *rows: object) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_documents_of_one_value_are_one_unit_and_those_without_text_have_none(tmp_path: Path) -> None:
    rows = [("a", "x"), ("b", 7), ("", "left out"), ("c", "x"), ("d", "7"), ("e", "y")]
    path = lines(tmp_path / "a.jsonl", *({"text": text, "patient": who} for text, who in rows))
    assert units_of(path, "patient").tolist() == [0, 1, 0, 1, 2]


def test_units_come_from_a_nested_column_and_from_a_table(tmp_path: Path) -> None:
    path = lines(tmp_path / "a.jsonl", {"text": "a", "who": {"id": 1}}, {"text": "b", "who": {"id": 2}})
    assert units_of(path, "who.id").tolist() == [0, 1]
    (tmp_path / "a.csv").write_text("text,patient\none,A\ntwo,B\nthree,A\n")
    assert units_of(tmp_path / "a.csv", "patient").tolist() == [0, 1, 0]


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"text": "b"}, "document 2: .*patient"),
        ({"text": "b", "patient": None}, "document 2: the column 'patient' is null"),
        ({"text": "b", "patient": " "}, "document 2: the column 'patient' is blank"),
        ({"text": "b", "patient": ["x"]}, "document 2: the column 'patient' is list"),
    ],
)
def test_a_document_of_nobody_is_refused(tmp_path: Path, row: object, message: str) -> None:
    with pytest.raises(InputError, match=message):
        units_of(lines(tmp_path / "a.jsonl", {"text": "a", "patient": "x"}, row), "patient")
