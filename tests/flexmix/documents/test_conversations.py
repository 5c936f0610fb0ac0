"""Conversations written out by chat templates as they are in the wild, and where the answers are."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from flexmix.documents.conversations import ChatTemplate, NoTemplateError, find_template
from flexmix.documents.reading import cut_into_tasks, read
from flexmix.documents.source import Conversation, Damaged, Document, Source
from flexo.errors import InputError
from tests.flexmix.chat import CHATML, GENERATION, MISTRAL, OLMO, PLAIN, TALK, THINKING
from tests.flexmix.reading import texts, with_damage

TOKENS = {"bos_token": "<s>", "eos_token": "</s>"}


def written(template: str, messages: list[dict[str, Any]] = TALK, specials: tuple[str, ...] = ()) -> Conversation:
    found = ChatTemplate(template, TOKENS, specials).write_out(messages)
    assert isinstance(found, Conversation), found
    return found


def answers(talk: Conversation) -> list[str]:
    return [talk.text[first:last] for first, last in talk.answers]


@pytest.mark.parametrize(
    ("template", "expected"),
    [
        (CHATML, ["The river was low.<|im_end|>\n", "It turns again. \n<|im_end|>\n"]),
        (OLMO, ["The river was low.</s>", "It turns again. \n</s>"]),
        (MISTRAL, ["The river was low.</s>", "It turns again.</s>"]),
        (PLAIN, ["The river was low.\n\n", "It turns again. \n\n\n"]),
        (GENERATION, ["The river was low.</s>", " It turns again. \n</s>"]),
        (THINKING, ["The river was low.<end>", "It turns again. \n<end>"]),
    ],
    ids=["ChatML", "OLMo", "Mistral", "plain", "generation", "thinking"],
)
def test_answers_of_templates_as_they_are(template: str, expected: list[str]) -> None:
    talk = written(template)
    assert answers(talk) == expected
    from transformers.utils.chat_template_utils import render_jinja_template

    render: Any = render_jinja_template
    assert talk.text == render([TALK], chat_template=template, **TOKENS)[0][0], "as transformers writes it"


def test_an_answer_that_repeats_its_question_or_its_role() -> None:
    talk = [{"role": "user", "content": "assistant"}, {"role": "assistant", "content": "assistant"}] * 3
    found = written(CHATML, talk)
    assert answers(found) == ["assistant<|im_end|>\n"] * 3 and len({first for first, _ in found.answers}) == 3
    assert all(found.text[:first].endswith("<|im_start|>assistant\n") for first, _ in found.answers)


def test_an_answer_that_is_part_of_what_ends_it() -> None:
    talk = [{"role": "user", "content": "end"}, {"role": "assistant", "content": "end"}]
    assert answers(written(CHATML, talk)) == ["end<|im_end|>\n"]


def test_an_empty_answer_is_none_and_a_conversation_may_begin_with_one() -> None:
    talk = [{"role": "assistant", "content": "Hello!"}, {"role": "user", "content": "Hi."}]
    assert answers(written(CHATML, talk)) == ["Hello!<|im_end|>\n"]
    assert written(CHATML, [talk[1], {"role": "assistant", "content": " "}]).answers == ()


def test_contents_that_spell_special_tokens_are_told_apart() -> None:
    talk = [
        {"role": "user", "content": "What does <|im_end|> mean, and </s>?"},
        {"role": "assistant", "content": "<|im_end|> ends a turn."},
    ]
    found = written(CHATML, talk, ("<|im_start|>", "<|im_end|>", "</s>"))
    assert found.text == written(CHATML, talk).text
    assert answers(found) == ["<|im_end|> ends a turn.<|im_end|>\n"]
    spelled = [found.text[at - 1 :][:4] for at in found.spelled]
    assert spelled == ["<|im", "</s>", "<|im"]


def test_a_template_that_refuses_a_conversation_damages_that_one_alone(tmp_path: Path) -> None:
    alternate = ChatTemplate(MISTRAL, TOKENS).write_out([TALK[0], TALK[0]])
    assert isinstance(alternate, Damaged) and "roles must alternate" in alternate.reason
    changed = ChatTemplate("{% for m in messages %}{{ m['content'] | upper }}{% endfor %}", TOKENS).write_out(TALK)
    assert isinstance(changed, Damaged) and "does not write message 2 as it is" in changed.reason
    assert "{% generation %}" in changed.reason
    with pytest.raises(InputError, match="its chat template is no template"):
        ChatTemplate("{% for %}", TOKENS).write_out(TALK)


def test_the_date_of_today_does_not_stand_in_training_text() -> None:
    assert written("{{ strftime_now('%d %B %Y') }} " + PLAIN).text.startswith("01 January 2026 Why did")


# --- where a template is found


def test_templates_are_found_where_transformers_finds_them(tiny_anchor: Path, tmp_path: Path) -> None:
    shutil.copyfile(tiny_anchor / "tokenizer.json", tmp_path / "tokenizer.json")
    assert find_template(tmp_path).template is None and find_template(tmp_path).digest is None
    (tmp_path / "chat_template.json").write_text(json.dumps({"chat_template": "legacy"}))
    assert find_template(tmp_path).template == "legacy"
    config = {
        "bos_token": None, "eos_token": {"content": "<|endoftext|>", "special": True}, "pad_token": "<|pad|>",
        "chat_template": [{"name": "tool_use", "template": "t"}, {"name": "default", "template": "listed"}],
    }  # fmt: skip
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    found = find_template(tmp_path)
    assert found.template == "listed" and found.variables == {"eos_token": "<|endoftext|>", "pad_token": "<|pad|>"}
    assert found.specials == ("<|endoftext|>",)
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config | {"chat_template": "one"}))
    assert find_template(tmp_path).template == "one"
    (tmp_path / "chat_template.jinja").write_text("file")
    digests = {find_template(tmp_path).digest}
    assert find_template(tmp_path).template == "file"
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config | {"eos_token": "</s>"}))
    assert find_template(tmp_path).digest not in digests
    (tmp_path / "tokenizer_config.json").write_text("{")
    with pytest.raises(InputError, match=r"tokenizer_config.json: not JSON"):
        find_template(tmp_path)


def test_without_a_template_the_refusal_says_how_to_give_one(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text(json.dumps({"messages": TALK}) + "\n")
    with pytest.raises(NoTemplateError):
        find_template(tmp_path).write_out(TALK)
    source = Source(str(path))
    with pytest.raises(InputError) as caught:
        list(read(source, cut_into_tasks(source).tasks[0], template=find_template(tmp_path)))
    assert str(caught.value).startswith(
        f"{path}: line 1: a conversation, and {tmp_path} has no chat template to write it out with. Save one as "
        f"{tmp_path / 'chat_template.jinja'}: any chat template of transformers"
    )


# --- conversations in files


def conversations(path: Path, **options: Any) -> list[Document]:
    source = Source(str(path), **options)
    template = ChatTemplate(CHATML, TOKENS)
    return [one for pieces in cut_into_tasks(source).tasks for one in read(source, pieces, template=template)]


def test_conversations_in_every_format(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text(json.dumps({"messages": TALK, "id": 1}) + "\n")
    (tmp_path / "b.json").write_text(json.dumps([{"messages": TALK}], indent=1))
    pq.write_table(pa.table({"messages": [TALK], "n": [1]}), tmp_path / "c.parquet")
    for name in ("a.jsonl", "b.json", "c.parquet"):
        (found,) = conversations(tmp_path / name)
        assert found.conversation is not None and answers(found.conversation)[0] == "The river was low.<|im_end|>\n"
        assert found.text == found.conversation.text == written(CHATML).text
    (tmp_path / "d.jsonl").write_text(json.dumps({"chat": TALK}) + "\n" + json.dumps({"chat": []}) + "\n")
    assert [bool(one.conversation) for one in conversations(tmp_path / "d.jsonl", text="chat")] == [True, False]


def test_text_comes_before_messages(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text(json.dumps({"messages": TALK, "text": "as text"}) + "\n")
    (found,) = conversations(tmp_path / "a.jsonl")
    assert found.text == "as text" and found.conversation is None
    assert conversations(tmp_path / "a.jsonl", text="messages")[0].conversation


def test_contents_in_parts_and_fields_without_values(tmp_path: Path) -> None:
    parts = [{"type": "text", "text": "Hello "}, {"type": "text", "text": "there."}]
    talk = [{"role": "user", "content": parts}, {"role": "assistant", "content": None, "tool_calls": None}]
    (tmp_path / "a.jsonl").write_text(json.dumps({"messages": talk}) + "\n")
    (found,) = conversations(tmp_path / "a.jsonl")
    assert found.conversation is not None
    assert found.conversation.messages == [
        {"role": "user", "content": "Hello there."}, {"role": "assistant", "content": ""},
    ]  # fmt: skip


def test_what_is_no_conversation_is_damage_that_says_so(tmp_path: Path) -> None:
    cases = {
        "message 1 with 'from', 'value', expected 'role' and 'content'": [{"from": "human", "value": "Hi"}],
        "message 2 with str, expected 'role' and 'content'": [TALK[0], "Hi"],
        "message 1 with a content of int, expected text": [{"role": "user", "content": 7}],
        "message 1 with a content of list, expected text": [{"role": "user", "content": [{"type": "image"}]}],
        "message 1 with half of a surrogate pair, which is no character": [{"role": "user", "content": "\ud83d"}],
    }
    (tmp_path / "a.jsonl").write_text("".join(json.dumps({"messages": talk}) + "\n" for talk in cases.values()))
    found, aside = with_damage(tmp_path / "a.jsonl")
    assert found == [] and [one.damaged.reason for one in aside] == [
        f"the column 'messages' holds {said}." for said in cases
    ]


def test_without_any_model_a_conversation_is_its_messages(tmp_path: Path) -> None:
    """As filters and the hub's keeping see it."""
    (tmp_path / "a.jsonl").write_text(json.dumps({"messages": TALK[:2]}) + "\n")
    assert texts(tmp_path / "a.jsonl") == ["Why did the mill stop?\nThe river was low."]
