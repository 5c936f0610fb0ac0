"""Tokens of conversations are those that transformers makes, and the answers are found among them."""

from __future__ import annotations

import json
import shutil
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from flexmix.documents.conversations import find_template
from flexmix.documents.source import Conversation
from flexmix.tokens import encoder as encoding
from flexmix.tokens.conversation_tokens import encode_conversation, encode_documents
from flexmix.tokens.encoder import Encoder, load_encoder
from flexmix.tokens.shard import open_shard, prepare_shard
from tests.flexmix.chat import CHATML, OLMO, TALK
from tests.flexmix.text import write_jsonl
from tests.merge.tools import listing


@pytest.fixture(scope="session")
def encoder(chat_model: Path) -> Encoder:
    return load_encoder(chat_model)


def talk_of(model: Path, messages: list[dict[str, Any]], template: str | None = None) -> Conversation:
    found = find_template(model)
    if template is not None:
        object.__setattr__(found, "template", template)
    made = found.write_out(messages)
    assert isinstance(made, Conversation), made
    return made


def test_tokens_are_those_of_transformers(chat_model: Path, encoder: Encoder) -> None:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(chat_model)
    for template in (OLMO, CHATML):
        tokenizer.chat_template = template
        expected = tokenizer.apply_chat_template(TALK, tokenize=True, return_dict=False)
        ids, _ = encode_conversation(encoder, talk_of(chat_model, TALK, template))
        end = encoder.end_of_text
        if expected[0] == end:  # the document's own
            expected = expected[1:]
        assert ids.tolist() == [end, *(expected[:-1] if expected[-1] == end else expected)]


def test_answers_are_the_tokens_of_their_text(chat_model: Path, encoder: Encoder) -> None:
    for template, ends in ((OLMO, 0), (CHATML, None)):
        talk = talk_of(chat_model, TALK, template)
        ids, spans = encode_conversation(encoder, talk)
        tokenizer = encoder.tokenizer
        following = [*ids.tolist(), encoder.end_of_text]  # the next document begins with the end of this one
        said = [tokenizer.decode(following[first:last], skip_special_tokens=False) for first, last in spans]
        assert len(spans) == 2
        assert said[0].removesuffix("<|endoftext|>").removesuffix("<|im_end|>\n") == "The river was low."
        assert spans[1][1] == len(ids) + 1, "the end of text behind the last answer is learned"
        assert said[1].endswith("<|endoftext|>") and said[1].lstrip().startswith("It turns again.")
        if ends == 0:
            assert ids[spans[0][1] - 1] == encoder.end_of_text, "OLMo ends every answer so"


def test_special_tokens_that_contents_spell_are_plain_text(chat_model: Path, encoder: Encoder) -> None:
    talk = [
        {"role": "user", "content": "What is <|im_end|> or <|endoftext|>?"},
        {"role": "assistant", "content": "<|endoftext|> ends all."},
    ]
    ids, ((first, last),) = encode_conversation(encoder, talk_of(chat_model, talk))
    special = {encoder.tokenizer.token_to_id(token) for token in ("<|im_end|>", "<|user|>", "<|assistant|>")}
    assert [i for i in ids.tolist() if i in special] == [
        encoder.tokenizer.token_to_id("<|user|>"), encoder.tokenizer.token_to_id("<|assistant|>"),
    ]  # fmt: skip
    assert ids.tolist().count(encoder.end_of_text) == 1 and last == len(ids) + 1
    assert encoder.tokenizer.decode(ids[first:].tolist()) == "<|endoftext|> ends all."


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=80, deadline=None)
@given(
    contents=st.lists(
        st.lists(st.sampled_from(["word", " ", "\n", "é", "數", "<|user|>", "<|im_end|>"]), max_size=8).map("".join),
        min_size=1, max_size=6,
    )
)  # fmt: skip
def test_any_contents_come_back(chat_model: Path, encoder: Encoder, contents: list[str]) -> None:
    messages = [{"role": ("user", "assistant")[n % 2], "content": text} for n, text in enumerate(contents)]
    talk = talk_of(chat_model, messages)
    ids, spans = encode_conversation(encoder, talk)
    whole = encoder.tokenizer.decode(ids[1:].tolist(), skip_special_tokens=False)
    assert whole == talk.text.removeprefix("<|endoftext|>").removesuffix("<|endoftext|>")
    answers = [text.strip() for text in contents[1::2] if text.strip()]
    assert len(spans) == len(answers)
    for (first, last), answer in zip(spans, answers, strict=True):
        assert answer in encoder.tokenizer.decode(ids[first:last].tolist(), skip_special_tokens=False)
        assert 1 <= first < last <= len(ids) + 1
    assert all(one[1] <= other[0] for one, other in pairwise(spans))


def test_a_long_conversation_is_encoded_in_stretches(
    chat_model: Path, encoder: Encoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    talk = talk_of(chat_model, TALK * 30)
    whole = encode_conversation(encoder, talk)
    monkeypatch.setattr(encoding, "STRETCH", 200)
    parts = encode_conversation(encoder, talk)
    assert parts[0].tolist() == whole[0].tolist() and parts[1] == whole[1]


def test_documents_of_both_kinds_are_encoded_in_their_order(chat_model: Path, encoder: Encoder) -> None:
    talk = talk_of(chat_model, TALK)
    ids, lengths, answers = encode_documents(encoder, ["plain", talk.text, "text"], [None, talk, None])
    alone, spans = encode_conversation(encoder, talk)
    plain = encoder.encode(["plain", "text"])
    assert lengths.tolist() == [plain[1][0], len(alone), plain[1][1]]
    assert ids.tolist() == [*plain[0][: lengths[0]].tolist(), *alone.tolist(), *plain[0][lengths[0] :].tolist()]
    assert answers.tolist() == [[1, *span] for span in spans]


# --- in shards


def conversations(path: Path, count: int = 6) -> Path:
    talks = [
        [{"role": "user", "content": f"Question {n}?"}, {"role": "assistant", "content": f"Answer {n}."}] * 2
        for n in range(count)
    ]
    path.write_text("".join(json.dumps({"messages": talk}) + "\n" for talk in talks))
    return path


def test_a_shard_keeps_where_the_answers_are(chat_model: Path, tmp_path: Path) -> None:
    shard = prepare_shard(conversations(tmp_path / "a.jsonl"), chat_model, tmp_path / "cache")
    assert listing(shard.folder) == {"tokens.bin", "documents.npy", "answers.npy", "shard.json"}
    assert (shard.documents, shard.conversations, shard.answers.shape) == (6, 6, (12, 2))
    tokenizer, ids = load_encoder(chat_model).tokenizer, [*shard.ids.tolist(), shard.end_of_text]
    said = [tokenizer.decode(ids[first:last], skip_special_tokens=False) for first, last in shard.answers]
    assert said == [f"Answer {n // 2}.<|endoftext|>" for n in range(12)]
    assert open_shard(shard.folder, chat_model) == shard
    np.save(shard.folder / "answers.npy", shard.answers + 1)
    with pytest.raises(Exception, match=r"answers.npy: its sha256 is not the one written down"):
        open_shard(shard.folder)


def test_a_shard_of_text_is_as_it_always_was(chat_model: Path, tmp_path: Path) -> None:
    shard = prepare_shard(write_jsonl(tmp_path / "a.jsonl", ["one", "two"]), chat_model, tmp_path / "cache")
    assert listing(shard.folder) == {"tokens.bin", "documents.npy", "shard.json"}
    assert set(json.loads((shard.folder / "shard.json").read_text())) == {
        "documents", "tokens", "text_bytes", "empty", "end_of_text", "tokenizer_digest", "dtype", "version", "files",
    }  # fmt: skip
    assert shard.answers.shape == (0, 2)


def test_another_template_is_another_shard(chat_model: Path, tmp_path: Path) -> None:
    source, model = conversations(tmp_path / "a.jsonl"), tmp_path / "model"
    shutil.copytree(chat_model, model)
    first = prepare_shard(source, model, tmp_path / "cache")
    (model / "chat_template.jinja").write_text(CHATML)
    second = prepare_shard(source, model, tmp_path / "cache")
    assert first.folder != second.folder and first.tokens != second.tokens
