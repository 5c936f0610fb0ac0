from __future__ import annotations

from pathlib import Path

import pytest

from tests.flexmix.text import TEXTS, write_jsonl


def prose(number: int) -> str:
    """A heading, a paragraph that bears the mark of its document, and one that is too short for a passage."""
    name = f"Person{number:02}"
    sentences = (
        f"{name} of the town number {n} went to the {n} hills, saw snow there, and came home." for n in range(9)
    )
    return "A Heading\n\n" + "\n".join(sentences) + f"\n\n{name} was tired. He slept."


@pytest.fixture(scope="session")
def documents() -> list[str]:
    """Nine documents of prose, of which multiple choice can be made."""
    return [prose(number) for number in range(9)]


@pytest.fixture(scope="session")
def library(tmp_path_factory: pytest.TempPathFactory, documents: list[str]) -> Path:
    """Corpora of two domains: educational prose, and texts shorter than any window, some of them awkward."""
    folder = tmp_path_factory.mktemp("library")
    write_jsonl(folder / "educational/test.jsonl.gz", documents)
    awkward = ["[1, 2]", "42", "{{ text }}", "a\u2028b", ' "quoted"\\ ', "end\n"]
    write_jsonl(folder / "public/test.jsonl", [*TEXTS, "", *awkward])
    return folder
