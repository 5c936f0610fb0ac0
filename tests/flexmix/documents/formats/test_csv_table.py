"""CSV as databases and spreadsheets write it."""

from __future__ import annotations

import csv
import io
import re
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from flexo.errors import InputError
from tests.flexmix.reading import STORIES, documents, texts, with_damage

MANY = [*STORIES, 'with "quotes", commas; semicolons\tand | bars', "two\nlines", "naïve 數據", "  blanks  "]


def table(separator: str = ",", end: str = "\r\n", columns: tuple[str, ...] = ("id", "text", "lang")) -> str:
    file = io.StringIO(newline="")
    quoting = csv.QUOTE_ALL if end == "\r" else csv.QUOTE_MINIMAL
    writer = csv.writer(file, delimiter=separator, lineterminator=end, quoting=quoting)
    writer.writerow(columns)
    for n, text in enumerate(MANY):
        writer.writerow([{"id": n, "text": text, "lang": "en" if n % 2 else ""}[name] for name in columns])
    return file.getvalue()


@pytest.mark.parametrize("separator", [",", ";", "\t", "|"])
@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
@pytest.mark.parametrize("name", ["a.csv", "a.tsv", "a.CSV", "a.jsonl", "a.txt"])
def test_separator_encoding_and_line_ends_are_found(
    tmp_path: Path, separator: str, end: str, encoding: str, name: str
) -> None:
    path = tmp_path / name
    path.write_bytes(table(separator, end).encode(encoding))
    assert texts(path) == MANY
    assert texts(path, where={"lang": "en"})  # a column there is


def test_a_table_of_one_column(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text(table(columns=("text",)))
    assert texts(tmp_path / "a.csv") == MANY


def test_the_first_line_of_excel(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("sep=;\r\n" + table(";"), newline="")
    assert texts(tmp_path / "a.csv") == MANY


def test_separator_and_encoding_may_be_given(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_bytes("text^lang\nStraße^de\nWäre^de\n".encode("cp1252"))
    assert texts(path, separator="^", encoding="cp1252") == ["Straße", "Wäre"]
    path.write_text("text\tlang\na,b\ten\n")
    assert texts(path, separator="tab") == texts(path) == ["a,b"]
    for wrong in ("ab", '"', ""):
        with pytest.raises(InputError, match=r"--separator .*: expected a single character, or tab"):
            texts(path, separator=wrong)
    path.write_bytes("text,lang\nStraße,de\n".encode("cp1252"))
    with pytest.raises(InputError, match=r"a.csv: line 2: not UTF-8 \(byte 0xdf in the text\). .*--encoding NAME"):
        texts(path)


def test_an_empty_cell_is_no_value_and_all_others_are_text(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text("text,n,lang\none,1,\n,2,en\n\nthree,03,en\n")
    assert [(one.text, one.columns["n"], one.columns["lang"]) for one in documents(path)] == [
        ("one", "1", None), ("", "2", "en"), ("three", "03", "en"),
    ]  # fmt: skip


def test_rows_that_do_not_fit_are_refused_by_their_line_or_set_aside(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text('text,lang\n"two\nlines",en\nunquoted, comma,en\nshort\nlast,en\n')
    with pytest.raises(InputError, match=r"a.csv: line 4: 3 cells, the first line names 2 columns"):
        texts(path)
    found, aside = with_damage(path)
    assert found == ["two\nlines", "last"]
    assert [(one.at, one.damaged.lines, one.damaged.beginning) for one in aside] == [
        ("line 4", 1, "unquoted, comma,en"), ("line 5", 1, "short"),
    ]  # fmt: skip


def test_quotes_that_do_not_end_are_damage_of_all_the_lines_they_swallow(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text('text,lang\none,en\n"never closed,en\n' + "more,en\n" * 10)
    found, aside = with_damage(path)
    assert found == ["one"] and (aside[0].at, aside[0].damaged.lines) == ("line 3", 11)
    assert "a quote is opened here and never closed, up to the end of the file, 11 lines" in aside[0].damaged.reason
    path.write_text('text,lang\n"he said \\"hi\\"",en\nlast,en\n')
    found, aside = with_damage(path)
    assert found == ["last"] and "A quote in a quoted cell is written twice" in aside[0].damaged.reason


def test_a_tsv_whose_quotes_are_ordinary_signs(tmp_path: Path) -> None:
    path = tmp_path / "a.tsv"
    rows = ['"Hello" she said', 'a 5" pipe', '"', "plain"] * 5
    path.write_text("text\tn\n" + "".join(f"{text}\t1\n" for text in rows))
    assert texts(path) == rows
    path.write_text('text\tn\n"with\ttab"\t1\n"and ""quotes"""\t2\n')
    assert texts(path) == ["with\ttab", 'and "quotes"']


def test_tables_without_the_columns_asked_for_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text("body,lang\na,en\n")
    with pytest.raises(InputError, match=r"a.csv: no column 'text' \(found 'body', 'lang'\). Name the one .*--text"):
        texts(path)
    with pytest.raises(InputError, match=r"a.csv: no column 'year' \(found 'body', 'lang'\)"):
        texts(path, text="body", where={"year": "2024"})
    path.write_text("text,text\na,b\n")
    with pytest.raises(InputError, match=r"a.csv: the column 'text' is there 2 times"):
        texts(path)
    path.write_bytes(b"")
    assert texts(path) == []


def test_prose_with_commas_is_no_table(tmp_path: Path) -> None:
    prose = "The text, as it is, has commas.\nIt has lines, too.\nAnd text, more of it.\n"
    (tmp_path / "a.txt").write_text(prose)
    assert texts(tmp_path / "a.txt") == [prose]


def test_cells_longer_than_the_module_allows(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("text,n\n" + "x" * 500_000 + ",1\nshort,2\n")
    assert [len(text) for text in texts(tmp_path / "a.csv")] == [500_000, 5]


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=60, deadline=None)
@given(
    rows=st.lists(st.text(alphabet='ab,;"\n\r é', min_size=1, max_size=12), min_size=1, max_size=12),
    separator=st.sampled_from([",", ";", "|"]),
)
def test_whatever_the_module_writes_is_read(tmp_path: Path, rows: list[str], separator: str) -> None:
    file = io.StringIO(newline="")
    writer = csv.writer(file, delimiter=separator)
    writer.writerows([["text", "n"], *([text, "1"] for text in rows)])
    (tmp_path / "a.csv").write_text(file.getvalue(), newline="", encoding="utf-8")
    assert texts(tmp_path / "a.csv") == rows


def test_progress_adds_up_to_the_file(tmp_path: Path) -> None:
    from flexmix.documents.reading import cut_into_tasks, read
    from flexmix.documents.source import Source

    path = tmp_path / "a.csv"
    path.write_text(table() * 1 + "".join(f"{n},x{n},en\r\n" for n in range(5000)), newline="")
    told: list[float] = []
    (pieces,) = cut_into_tasks(Source(str(path))).tasks
    assert len(list(read(Source(str(path)), pieces, told.append))) == 5000 + len(MANY)
    assert sum(told) == path.stat().st_size and len(told) > 10
    assert re.fullmatch("CSV", pieces[0].format)
