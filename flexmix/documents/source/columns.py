"""What stands in the columns of a document: a value by its name, a value against a setting, the types of a table.

holds(True, "true")    holds(None, "null")    holds(3, "3")    holds("null", '"null"')
"""

from __future__ import annotations

import datetime
import json
from collections.abc import Iterable, Sequence
from decimal import Decimal, InvalidOperation
from typing import TYPE_CHECKING, Any

from flexmix.documents.source import MESSAGES, TEXT, Row, Source
from flexo.errors import InputError

if TYPE_CHECKING:
    import pyarrow as pa

SHOWN = 12  # columns or values in a message


def value_of(row: Row, name: str) -> Any:
    """The value under a name; `a.b` is the field `b` of the column `a`. Raises `KeyError`."""
    if name in row or "." not in name:
        return row[name]
    first, _, rest = name.partition(".")
    inner = row[first]
    if not isinstance(inner, dict):
        raise KeyError(name)
    return value_of(inner, rest)


def text_column(columns: Iterable[str], source: Source) -> str:
    """The column that holds a source's text or conversations, as far as its columns say so."""
    there = set(columns)
    return MESSAGES if source.text == TEXT and TEXT not in there and MESSAGES in there else source.text


def holds(found: Any, given: str) -> bool:
    """Whether a value is the one that a text stands for, by the value's type.

    `null` is no value, `true` and `false` are booleans, numbers are compared as numbers, dates as they are written in
    ISO 8601. A text in double quotes is a text whatever it spells. Raises `InputError` for a list or an object.
    """
    if isinstance(found, str):
        return found == given or (given[:1] == given[-1:] == '"' and len(given) > 1 and found == given[1:-1])
    if found is None:
        return given == "null"
    if isinstance(found, bool):
        return given.lower() == str(found).lower()
    if isinstance(found, int | float | Decimal):
        number = _number(given)
        if number is None or number.is_nan():
            return number is not None and found != found  # nan, which alone differs from itself
        return float(number) == found if isinstance(found, float) else number == found
    if isinstance(found, bytes):
        return found == given.encode()
    if isinstance(found, datetime.date | datetime.time):
        return given in (found.isoformat(), str(found))
    if isinstance(found, list | tuple | dict):
        raise InputError(
            f"{type(found).__name__} cannot be compared with {given!r}. Name a field of it, COLUMN.FIELD=VALUE, or "
            "write a function and name it with --keep."
        )
    return str(found) == given


def written(found: Any) -> str:
    """A value as `holds` takes it, for a list of those that were found."""
    if isinstance(found, str):
        return json.dumps(found, ensure_ascii=False) if found in ("null", "true", "false") or not found else found
    if found is None or isinstance(found, bool):
        return json.dumps(found)
    return str(found)


def refuse_missing(columns: Sequence[str], source: Source, where: str) -> None:
    """Raises `InputError` if a table lacks the column of text or one of the filter, or has one twice."""
    for column in columns:
        if columns.count(column) > 1:
            raise InputError(
                f"{where}: the column {column!r} is there {columns.count(column)} times. Which of them is meant cannot "
                "be known: rename or drop all but one."
            )
    for column in (text_column(columns, source), *source.where):
        if column not in columns and column.partition(".")[0] not in columns:
            raise InputError(f"{where}: {no_column(column, columns)}")


def no_column(column: str, columns: Iterable[str]) -> str:
    """What is said of a column that is not there."""
    found = ", ".join(map(repr, sorted(columns)[:SHOWN])) or "none"
    advice = " Name the one that holds the text with --text." if column == TEXT else ""
    return f"no column {column!r} (found {found}).{advice}"


def refuse_schema(schema: pa.Schema, source: Source, where: str, more: Iterable[str] = ()) -> None:
    """Raises `InputError` unless a table has the columns asked for, that of text with text or conversations in it.

    `more` are columns that are not in the table, as the names of folders add them.
    """
    refuse_missing([*schema.names, *(name for name in more if name not in schema.names)], source, where)
    name = text_column(schema.names, source)
    found = _type_of(schema, name)
    if found is None:
        raise InputError(f"{where}: {no_column(name, schema.names)}")
    if not _is_text(found) and not _is_conversation(found):
        raise InputError(f"{where}: the column {name!r} holds {found}, expected text.{_advice(found, name)}")


def columns_to_read(names: Sequence[str], source: Source) -> list[str] | None:
    """The columns of a table that a source needs; None for all, which functions of the owner may ask about."""
    if source.keep:
        return None
    wanted = [name if name in names else name.partition(".")[0] for name in (text_column(names, source), *source.where)]
    return [name for name in dict.fromkeys(wanted) if name in names]


def _number(text: str) -> Decimal | None:
    try:
        return Decimal(text)
    except InvalidOperation:
        return None


def _type_of(schema: pa.Schema, name: str) -> pa.DataType | None:
    import pyarrow as pa

    if name in schema.names:
        return schema.field(name).type
    first, *rest = name.split(".")
    found = schema.field(first).type
    for part in rest:
        if not pa.types.is_struct(found) or found.get_field_index(part) < 0:
            return None
        found = found.field(found.get_field_index(part)).type
    return found


def _is_text(found: pa.DataType) -> bool:
    import pyarrow as pa

    if pa.types.is_dictionary(found) or pa.types.is_run_end_encoded(found):
        return _is_text(found.value_type)
    kinds = (
        "is_string", "is_large_string", "is_string_view", "is_binary", "is_large_binary", "is_binary_view",
        "is_fixed_size_binary", "is_null",
    )  # fmt: skip
    return any(getattr(pa.types, kind)(found) for kind in kinds)


def _is_conversation(found: pa.DataType) -> bool:
    """A list of objects with a role and a content."""
    import pyarrow as pa

    if not (pa.types.is_list(found) or pa.types.is_large_list(found) or pa.types.is_list_view(found)):
        return False
    message = found.value_type
    return bool(pa.types.is_struct(message)) and min(map(message.get_field_index, ("role", "content"))) >= 0


def _advice(found: pa.DataType, name: str) -> str:
    import pyarrow as pa

    if pa.types.is_struct(found):
        fields = ", ".join(f"{name}.{found.field(n).name}" for n in range(min(SHOWN, found.num_fields)))
        return f" Name one of its fields with --text: {fields}."
    if pa.types.is_list(found) or pa.types.is_large_list(found):
        return " Join the parts of each document into one text first."
    return " Name the one that holds the text with --text."
