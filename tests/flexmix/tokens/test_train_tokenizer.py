from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer

from flexmix.tokens.train_tokenizer import END_OF_TEXT, LONG, LONGEST, PAD, train_tokenizer, without_long_words
from tests.flexmix.text import TEXTS

PUBLIC = [*TEXTS * 50, "In 1984 there were 12 of 34 cats.", "naïve café 😀 日本語\r\n\ttab"]


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    trained = train_tokenizer(PUBLIC, 320)
    trained.encode_special_tokens = True  # as token shards are made
    return trained


@given(
    st.text()
    | st.text(alphabet="\x00\r\n\t \u00a0\u2028\ufeff0129²½٣ab'’😀👩\u200d🔬<|endoftext|>")
    | st.lists(st.sampled_from([*PUBLIC, END_OF_TEXT, PAD, " ", "\r\n", "\x00"])).map("".join)
)
def test_any_text_decodes_to_itself(tokenizer: Tokenizer, text: str) -> None:
    ids = tokenizer.encode(text, add_special_tokens=False).ids
    assert tokenizer.decode(ids) == text
    assert not {0, 1} & set(ids)


def test_special_tokens_come_first_and_then_every_byte(tokenizer: Tokenizer) -> None:
    assert (tokenizer.token_to_id(END_OF_TEXT), tokenizer.token_to_id(PAD)) == (0, 1)
    assert tokenizer.get_vocab_size() == 320
    assert len(train_tokenizer([], 258).get_vocab()) == 258  # without any text
    assert tokenizer.encode("The cat sat").ids != train_tokenizer([], 258).encode("The cat sat").ids


def test_digits_stand_alone(tokenizer: Tokenizer) -> None:
    assert tokenizer.encode("1984").tokens == ["1", "9", "8", "4"]
    assert sum(token.isdigit() and len(token) > 1 for token in tokenizer.get_vocab()) == 0


def test_the_same_text_gives_the_same_tokenizer() -> None:
    first = train_tokenizer(PUBLIC, 300).to_str()
    assert train_tokenizer(iter(PUBLIC), 300).to_str() == first
    assert train_tokenizer(list(reversed(PUBLIC)), 300).to_str() == first


@given(
    st.lists(st.sampled_from(["a" * 40, "一" * 70, " " * 90, "=_" * 80, "word", "\n", "é1"]), max_size=12).map("".join)
)
def test_long_words_are_cut_and_nothing_is_lost(text: str) -> None:
    parts = list(without_long_words(text))
    assert "".join(parts) == text
    for part in parts:
        assert all(len(run) <= LONGEST for run in re.findall(r"[^\W\d_]+|\s+|(?:[^\w\s]|_)+", part))
    if len(parts) > 1:
        assert LONG.search(text)


@pytest.mark.parametrize("text", ["a", "\n", "=", "_", "x9"])
def test_one_sign_without_end_takes_no_time(text: str) -> None:
    """A quarter of this took more than a minute, and each doubling four times as long."""
    tokenizer = train_tokenizer(["the cat sat on the mat"] * 9 + [text * 400_000], 280)
    assert tokenizer.decode(tokenizer.encode(text * 9).ids) == text * 9
