from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.flexmix.text import TEXTS, write_jsonl
from tests.inference.models import merge_domains


@pytest.fixture(scope="session")
def merged(make_expert: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A merged folder of public, math and news, two active; for all tests of a session."""
    return merge_domains(make_expert, tmp_path_factory.mktemp("merged") / "model", ["math", "news"], top_k=2)


@pytest.fixture(scope="session")
def corpora(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Held-out text of public, math and poems, and things beside it that are no domain."""
    folder = tmp_path_factory.mktemp("corpora")
    write_jsonl(folder / "public/test.jsonl.gz", TEXTS)
    write_jsonl(folder / "math/test.jsonl", ["x + 1 is a number", "", "let x be " * 40])
    write_jsonl(folder / "poems/test.jsonl", ["the door, the dog, the cat"])
    write_jsonl(folder / "unheld/train.jsonl", TEXTS)
    write_jsonl(folder / ".math.partial-1/test.jsonl", TEXTS)
    write_jsonl(folder / "manifest.json", [])
    return folder


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
