"""Whose each document is: the unit of every document of a place, by the value of a column."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt

from flexmix.documents.reading import read_all
from flexmix.documents.source import Source
from flexmix.documents.source.columns import no_column, value_of
from flexo.errors import InputError


def units_of(place: Path, column: str) -> npt.NDArray[np.int64]:
    """Numbers from 0 on, the same for the same value as it is written, [documents]; documents without text have none.

    Raises:
        InputError: a document lacks the column, or has no value in it, or a list or an object.
    """
    numbers: dict[str, int] = {}
    found: list[int] = []
    for n, document in enumerate(read_all(Source(str(place), where={column: ""})), 1):
        if not document.text or document.text.isspace():
            continue
        try:
            value = value_of(document.columns, column)
        except KeyError:
            raise InputError(f"{place}, document {n}: {no_column(column, document.columns)}") from None
        written = "" if value is None or isinstance(value, list | dict) else str(value).strip()
        if not written:
            what = "null" if value is None else type(value).__name__ if isinstance(value, list | dict) else "blank"
            raise InputError(
                f"{place}, document {n}: the column {column!r} is {what}. Privacy protects whom it names, so every "
                "document needs a name or a number there: fill it in, or leave those documents out."
            )
        found.append(numbers.setdefault(written, len(numbers)))
    return np.array(found, dtype=np.int64)
