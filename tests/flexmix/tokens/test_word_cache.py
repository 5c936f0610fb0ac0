from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import AddedToken, Regex, Tokenizer, normalizers, pre_tokenizers

from flexmix.tokens import word_cache as words
from flexmix.tokens.train_tokenizer import train_tokenizer
from flexmix.tokens.word_cache import CL100K, CONTRACTIONS, Words, splits_at_spaces
from tests.flexmix.text import TEXTS

PUBLIC = [
    *TEXTS * 50,
    "In 1984 there were 12 of 34 cats; it's 7.5 %!",
    "naïve café 😀 日本語\r\n\ttab",
    "x  y\n\n  z ); } //",
]
BYTES = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)


def tokenizer_of(kind: str) -> Tokenizer:
    trained = train_tokenizer(PUBLIC, 500)
    if kind == "gpt2":
        trained.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    elif kind == "cl100k":
        split = pre_tokenizers.Split(Regex(CONTRACTIONS[0] + CL100K), "removed", invert=True)
        trained.pre_tokenizer = pre_tokenizers.Sequence([split, BYTES])
    trained.add_tokens([AddedToken("|||EMAIL|||", special=False)])
    trained.encode_special_tokens = True  # as token shards are made
    return trained


TOKENIZERS = {kind: tokenizer_of(kind) for kind in ("ours", "gpt2", "cl100k")}


@given(
    st.lists(
        st.text()
        | st.text(alphabet="\x00\x1c\x85\r\n\t  \u00a0\u2028\u3000\ufeff\u0301 09²½٣ab'’s.,;()😀日")
        | st.text(alphabet="   \n\n\t1abé'.", max_size=12)
        | st.lists(st.sampled_from([*PUBLIC, "|||EMAIL|||", "<|endoftext|>", " ", "  ", "\n"])).map("".join),
        max_size=4,
    )
)
def test_ids_are_those_of_the_tokenizer(texts: list[str]) -> None:
    for tokenizer in TOKENIZERS.values():
        assert splits_at_spaces(tokenizer)
        expected = [encoding.ids for encoding in tokenizer.encode_batch(texts, add_special_tokens=False)]
        memory = Words(tokenizer, "uint32")
        for _ in range(2):  # met for the first time, and known
            assert [ids.tolist() for ids in memory.encode(texts)] == expected


def test_memory_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(words, "WORDS", 10)
    memory, tokenizer = Words(TOKENIZERS["gpt2"], "uint16"), TOKENIZERS["gpt2"]
    for first in range(0, 100, 5):
        text = " ".join(["a", *(f"w{n}" for n in range(first, first + 5)), "b" * 100])
        assert memory.encode([text])[0].tolist() == tokenizer.encode(text, add_special_tokens=False).ids
        assert len(memory._known) <= 15 and max(map(len, memory._known)) < 10


def test_other_kinds_of_tokenizers_are_left_to_themselves() -> None:
    for change in (
        lambda it: setattr(it, "normalizer", normalizers.NFKC()),
        lambda it: setattr(it, "pre_tokenizer", pre_tokenizers.ByteLevel(add_prefix_space=True)),
        lambda it: setattr(it, "pre_tokenizer", BYTES),
        lambda it: setattr(it, "pre_tokenizer", pre_tokenizers.Metaspace()),
        lambda it: it.add_tokens([AddedToken("two words", special=False)]),
        lambda it: it.add_tokens([AddedToken("<eats>", special=False, rstrip=True)]),
        lambda it: setattr(
            it, "pre_tokenizer", pre_tokenizers.Sequence([pre_tokenizers.Split(Regex(r"\S+ \S+"), "isolated"), BYTES])
        ),
    ):
        tokenizer = tokenizer_of("gpt2")
        assert splits_at_spaces(tokenizer)
        change(tokenizer)
        assert not splits_at_spaces(tokenizer)
