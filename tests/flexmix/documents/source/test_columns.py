"""A value against the text of a setting, by the value's type."""

from __future__ import annotations

import datetime
from decimal import Decimal
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flexmix.documents.source.columns import holds, value_of, written
from flexo.errors import InputError


@pytest.mark.parametrize(
    ("found", "yes", "no"),
    [
        (True, ["true", "True", "TRUE"], ["false", "1", "null", "yes"]),
        (False, ["false"], ["true", "0", "null", ""]),
        (None, ["null"], ["None", "", "0", "false", '"null"']),
        (3, ["3", "3.0", "03", "+3", "3e0"], ["33", "three", "true", "null", ""]),
        (1, ["1"], ["true"]),
        (2**70, [str(2**70)], [str(2**70 + 1)]),
        (0.1, ["0.1", ".1", "1e-1"], ["0.10000001", "0", "nan"]),
        (float("nan"), ["nan", "NaN"], ["0", "null"]),
        (float("inf"), ["inf"], ["-inf", "1e300"]),
        (Decimal("1.50"), ["1.5", "1.50"], ["1.51"]),
        ("3", ["3", '"3"'], ["3.0", "03"]),
        ("true", ["true", '"true"'], ["True"]),
        ("null", ['"null"', "null"], ["None"]),
        ("", ["", '""'], ["null", " "]),
        ('"', ['"', '"""'], ['""']),
        (b"caf\xc3\xa9", ["café"], ["cafe"]),
        (datetime.date(2024, 2, 1), ["2024-02-01"], ["2024", "01.02.2024"]),
        (datetime.datetime(2024, 2, 1, 3), ["2024-02-01 03:00:00", "2024-02-01T03:00:00"], ["2024-02-01"]),
    ],
)
def test_values_are_compared_by_their_type(found: Any, yes: list[str], no: list[str]) -> None:
    assert [text for text in yes if not holds(found, text)] == []
    assert [text for text in no if holds(found, text)] == []


@given(st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text())
def test_what_is_listed_can_be_asked_for(found: Any) -> None:
    assert holds(found, written(found))


def test_lists_and_objects_cannot_be_compared() -> None:
    for found in ([1], {"a": 1}):
        with pytest.raises(
            InputError, match=r"cannot be compared with '1'. Name a field of it, COLUMN.FIELD=VALUE, or"
        ):
            holds(found, "1")


def test_a_value_by_its_name() -> None:
    row = {"a": {"b": {"c": 1}}, "a.x": 2, "n": 3}
    assert (value_of(row, "a.b.c"), value_of(row, "a.x"), value_of(row, "a.b")) == (1, 2, {"c": 1})
    for name in ("b", "a.c", "n.x", "a.b.c.d"):
        with pytest.raises(KeyError):
            value_of(row, name)
