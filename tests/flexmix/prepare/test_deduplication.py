from __future__ import annotations

import random
from pathlib import Path

import numpy as np
import pytest
from datatrove.data import Document
from hypothesis import given
from hypothesis import strategies as st

from flexmix.prepare import deduplication as duplicates
from flexmix.prepare.deduplication import Signatures, Words, later_ones, repeated
from flexmix.prepare.steps import RECORD

NODES = st.tuples(st.integers(0, 3), st.integers(0, 5))


@given(st.lists(st.lists(st.integers(0, 6), max_size=8), min_size=1, max_size=5), st.sampled_from([1, 3, 1000]))
def test_all_but_the_first_of_equal_documents_are_found(tasks: list[list[int]], at_once: int) -> None:
    records = []
    for values in tasks:
        record = np.zeros(len(values), RECORD)
        record["low"] = [value % 3 for value in values]  # halves of the digest that agree do not make it equal
        record["high"] = [value // 3 for value in values]
        records.append(record)
    seen: set[int] = set()
    expected = [[value in seen or bool(seen.add(value)) for value in values] for values in tasks]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(duplicates, "AT_ONCE", at_once)
        assert [flags.tolist() for flags in repeated(records)] == expected


@given(st.lists(st.tuples(NODES, NODES), max_size=30), st.randoms())
def test_the_first_of_each_cluster_is_kept(
    pairs: list[tuple[tuple[int, int], tuple[int, int]]], dice: random.Random
) -> None:
    parts: list[set[tuple[int, int]]] = []
    for a, b in pairs:
        touching = [part for part in parts if a in part or b in part]
        parts = [part for part in parts if part not in touching] + [{a, b}.union(*touching)]
    expected = {node for part in parts for node in part - {min(part)}}
    assert set(later_ones(pairs)) == expected
    dice.shuffle(pairs)
    assert set(later_ones(pairs)) == expected


def test_long_chains_are_no_trouble() -> None:
    chain = [((0, n), (0, n + 1)) for n in range(20_000)]
    assert len(later_ones(chain)) == len(later_ones(reversed(chain))) == 20_000


def test_words_of_scripts_with_and_without_spaces() -> None:
    assert Words().word_tokenize("a cat's naïve 12") == ["a", "cat", "s", "naïve", "12"]
    assert Words().word_tokenize("猫が座る") == ["猫", "が", "座", "る"]


def test_signatures_of_long_texts_are_made_in_parts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    dice = random.Random(0)
    shingles = np.array([dice.getrandbits(64) for _ in range(10_000)], dtype=np.uint64).reshape(-1, 1)
    whole = super(Signatures, signer := Signatures(tmp_path)).get_signature(shingles)
    assert signer.get_signature(shingles) == whole
    assert len(whole) == 14 and len(whole[0]) == 8


def test_a_document_of_few_words_has_no_signature(tmp_path: Path) -> None:
    documents = [Document(text=text, id="") for text in ("too short", "one two three four five six", "")]
    Signatures(tmp_path).run(iter(documents))
    sizes = {path.stat().st_size for path in tmp_path.rglob("*.sig")}
    assert sizes == {8 * 8 + 4}
    Signatures(tmp_path).run(iter([]), rank=1)  # a task without documents
