from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flexmix.documents import filters
from flexmix.documents.filters import filter_names, load_filter, rejected, scrub
from flexmix.documents.source import Source
from flexo.errors import InputError


def is_short(row: dict[str, Any]) -> bool:
    return len(row["body"]) < 20


def breaks(row: dict[str, Any]) -> bool:
    return bool(row["nothing"])


def test_filters_are_asked_in_order_and_named() -> None:
    keep = (f"{__name__}:is_short",)
    source = Source("x", "body", where={"lang": "en", "year": "2020"}, min_length=5, max_word=8, keep=keep)
    assert filter_names(source) == ["lang=en", "year=2020", "shorter than 5", "a word longer than 8", keep[0]]

    def verdict(text: str, lang: str = "en", year: object = 2020) -> str | None:
        return rejected(source, text, {"body": text, "lang": lang, "year": year})

    assert verdict("a good text") is None
    assert verdict("a", lang="de") == "lang=en"
    assert verdict("a good text", year=2021) == "year=2020"
    assert verdict("a") == "shorter than 5"
    assert verdict("a incomprehensible") == "a word longer than 8" and verdict("a") == "shorter than 5"
    assert verdict("a good text of more than twenty") == f"{__name__}:is_short"
    with pytest.raises(InputError, match=r"x: no column 'year' to filter by \(found 'body', 'lang'\)"):
        rejected(source, "a", {"body": "a", "lang": "en"})


def test_a_filter_of_the_current_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "my_own_filters.py").write_text("def loud(row):\n    return row['text'].isupper()\nnumber = 7\n")
    monkeypatch.chdir(tmp_path)
    assert load_filter("my_own_filters:loud")({"text": "YES"})
    assert not load_filter("my_own_filters.loud")({"text": "no"})
    for name, said in (
        ("my_own_filters:quiet", "cannot be loaded (module 'my_own_filters' has no attribute 'quiet')"),
        ("no_such_module:f", "cannot be loaded (No module named 'no_such_module')"),
        ("f", "cannot be loaded (Empty module name)"),
        ("my_own_filters:number", "int, expected a function of a document's columns"),
    ):
        with pytest.raises(InputError, match=re.escape(said)):
            load_filter(name)


def test_a_filter_that_breaks_is_named() -> None:
    source = Source("x", keep=(f"{__name__}:breaks",))
    with pytest.raises(InputError, match=rf"the filter {__name__}:breaks failed: KeyError: 'nothing'"):
        rejected(source, "a", {"text": "a"})


def test_filters_of_datatrove_serve(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "trove_filters.py").write_text(
        "from datatrove.pipeline.filters.base_filter import BaseFilter\n"
        "class Long(BaseFilter):\n"
        "    def filter(self, doc):\n"
        "        return len(doc.text) > 5 or (False, 'short')\n"
    )
    monkeypatch.chdir(tmp_path)
    keep = load_filter("trove_filters:Long")
    assert keep({"text": "long enough"}) is True and keep({"body": "no"}) is False


@pytest.mark.parametrize(
    ("text", "clean"),
    [
        ("write to jane.doe+x@mail.example.org, or not", "write to <email>, or not"),
        ("a@b and @handle stay", "a@b and @handle stay"),
        ("call +49 30 1234567 now", "call <phone> now"),
        ("call +1 (212) 555-0123.", "call <phone>."),
        ("(030) 123 4567 or 030 12345678", "<phone> or <phone>"),
        ("212-555-0123", "<phone>"),
        ("born 1999-12-31, paid 1234567890 on 10/11/2020", "born 1999-12-31, paid 1234567890 on 10/11/2020"),
        ("pi is 3.14159265358979, 2 + 2 = 4, 100,000,000", "pi is 3.14159265358979, 2 + 2 = 4, 100,000,000"),
        ("192.168.100.200 and 0.12345678", "192.168.100.200 and 0.12345678"),
        ("ISBN 978-3-16-148410-0", "ISBN 978-3-16-148410-0"),
    ],
)  # fmt: skip
def test_addresses_and_numbers_are_blotted_out(text: str, clean: str) -> None:
    found, emails, phones = scrub(text)
    assert found == clean
    assert (emails, phones) == (clean.count("<email>"), clean.count("<phone>"))


@given(st.text(alphabet="ab.@+-_1é [](){}'x\n", max_size=40))
def test_addresses_are_those_of_datatroves_pattern(text: str) -> None:
    """Which is only asked near an @, for it takes a time that grows with the square of text without blanks."""
    assert filters._without_emails(text) == filters._emails().subn(filters.EMAIL, text)


def test_addresses_in_endless_text_take_no_time() -> None:
    """400,000 of these took longer than a minute."""
    text = "QUJ+DRA/" * 100_000 + " @ and a@b.example " + "a@" * 20_000
    clean, emails, _ = scrub(text)
    assert emails == 1 and clean == text.replace("a@b.example", "<email>")


@given(st.text(alphabet="ab1 2+0@().-/", max_size=60))
def test_what_was_scrubbed_holds_nothing_more_to_scrub(text: str) -> None:
    once, _, _ = scrub(text)
    assert "@" not in once or scrub(once)[1] == 0
    assert sum(map(str.isdigit, once)) <= sum(map(str.isdigit, text))
