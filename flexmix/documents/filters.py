"""Which documents are taken, and what is blotted out in them.

A filter of the owner's own is a function named by a dotted path, `my_filters:is_english` or `my_filters.is_english`. It
gets a document's columns, its text among them, and says whether to keep it:

    def is_english(row: dict) -> bool: ...

A datatrove filter serves too: an object, or a class that needs no arguments.
"""

from __future__ import annotations

import importlib
import re
import sys
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

from flexmix.documents.source import Source
from flexmix.documents.source.columns import SHOWN, holds, value_of
from flexo.errors import InputError

Keep = Callable[[dict[str, Any]], bool]

EMAIL, PHONE = "<email>", "<phone>"
NEAR = 320  # characters before and behind an @ that an address may take
BEGINNING = re.compile(r"\b")
LOCAL = re.compile(r"[A-Za-z0-9!#$%&'*+/=?^_`{|}~.-]+")  # in the name before it
GROUP = r"[ .\-/]?\(?\d{1,5}\)?"
PHONES = re.compile(
    rf"(?<![\w+.\-/])(?:\+\d{{1,3}}(?:{GROUP}){{2,6}}"  # +49 30 1234567
    r"|\(\d{2,5}\)[ .\-]?\d{3,5}(?:[ .\-]?\d{2,5}){0,2}"  # (030) 123 4567
    r"|\d{3}[ .\-]\d{3}[ .\-]\d{4}"  # 212-555-0123
    r"|0\d{2,4}[ /\-]\d{3,8}(?:[ \-]\d{2,4}){0,2})(?![\w])"  # 030 12345678
)


def rejected(source: Source, text: str, row: dict[str, Any]) -> str | None:
    """The name of the first filter that refuses a document, or None; names are as in `filter_names`."""
    for column, given in source.where.items():
        try:
            if not holds(value_of(row, column), given):
                return f"{column}={given}"
        except KeyError:
            found = ", ".join(map(repr, sorted(row)[:SHOWN]))
            raise InputError(f"{source.place}: no column {column!r} to filter by (found {found}).") from None
        except InputError as error:
            raise InputError(f"{source.place}: the column {column!r} holds {error}") from None
    if len(text) < source.min_length:
        return _shorter(source)
    if source.max_word and max(map(len, text.split()), default=0) > source.max_word:
        return _longer(source)
    for name in source.keep:
        try:
            kept = load_filter(name)(row)
        except InputError:
            raise
        except Exception as error:  # the owner's own code, which may raise anything
            raise InputError(f"the filter {name} failed: {type(error).__name__}: {error}") from error
        if not kept:
            return name
    return None


def filter_names(source: Source) -> list[str]:
    """The filters of a source in the order in which they are asked."""
    length = [_shorter(source)] if source.min_length else []
    word = [_longer(source)] if source.max_word else []
    return [*(f"{column}={value}" for column, value in source.where.items()), *length, *word, *source.keep]


def _shorter(source: Source) -> str:
    return f"shorter than {source.min_length}"


def _longer(source: Source) -> str:
    return f"a word longer than {source.max_word}"


@cache
def load_filter(name: str) -> Keep:
    """The function behind a dotted path; the current folder is searched like any other. Raises `InputError`."""
    module, _, attribute = name.partition(":") if ":" in name else name.rpartition(".")
    if (here := str(Path.cwd())) not in sys.path:
        sys.path.append(here)
    try:
        found = getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError, ValueError) as error:
        raise InputError(
            f"filter {name!r}: cannot be loaded ({error}). Expected module:function, the module in the current folder "
            "or installed."
        ) from None
    return _keep(found, name)


def _keep(found: Any, name: str) -> Keep:
    from datatrove.data import Document
    from datatrove.pipeline.filters.base_filter import BaseFilter

    if isinstance(found, type) and issubclass(found, BaseFilter):
        found = found()
    if isinstance(found, BaseFilter):
        trove = found

        def keep(row: dict[str, Any]) -> bool:
            text = next(value for value in row.values() if isinstance(value, str))
            answer = trove.filter(Document(text=str(row.get("text", text)), id="", metadata=row))
            return bool(answer[0] if isinstance(answer, tuple) else answer)

        return keep
    if not callable(found):
        raise InputError(f"filter {name!r}: {type(found).__name__}, expected a function of a document's columns.")
    function: Keep = found
    return function


def scrub(text: str) -> tuple[str, int, int]:
    """Blots out e-mail addresses and phone numbers.

    Addresses are found by datatrove's pattern. Phone numbers are those written with a country code, an area code in
    brackets or with a leading zero, or in the American groups of 3, 3 and 4 digits; others stay.

    Returns:
        The text, and how many addresses and numbers were replaced.
    """
    phones = 0
    text, emails = _without_emails(text)

    def phone(match: re.Match[str]) -> str:
        nonlocal phones
        if not 8 <= sum(map(str.isdigit, match[0])) <= 15:
            return match[0]
        phones += 1
        return PHONE

    return PHONES.sub(phone, text), emails, phones


def _without_emails(text: str) -> tuple[str, int]:
    """Looks around each `@` alone: from every beginning, the pattern would read to the end of what may be a name, which
    takes a time that grows with the square of such text, and base64 is text of that kind.
    """
    parts: list[str] = []
    done, at = 0, text.find("@")
    while at >= 0:
        before = text[max(done, at - NEAR) : at][::-1]
        name = LOCAL.match(before)
        starts = BEGINNING.finditer(text, at - name.end(), at) if name else ()
        found = (_emails().match(text, start.start(), at + NEAR) for start in starts)
        if match := next(filter(None, found), None):
            parts += [text[done : match.start()], EMAIL]
            done = match.end()
        at = text.find("@", max(done, at + 1))
    return "".join([*parts, text[done:]]), len(parts) // 2


@cache
def _emails() -> re.Pattern[str]:
    from datatrove.pipeline.formatters.pii import PIIFormatter

    pattern: re.Pattern[str] = PIIFormatter(remove_ips=False).emails_replacer.regex
    return pattern
