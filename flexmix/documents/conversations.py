"""Conversations as text: messages written out by a model's chat template, and where the answers are in it.

    template = find_template(Path("anchor"))
    template.write_out([{"role": "user", "content": "Why?"}, {"role": "assistant", "content": "Because."}])

The template is that of transformers: `chat_template.jinja` in the model's folder, or `chat_template` in its
`tokenizer_config.json`. Answers are the messages of the role `assistant`: what the template marks with
`{% generation %}`, or else what it writes for each of them behind the prompt for it.
"""

from __future__ import annotations

import hashlib
import json
import re
from bisect import bisect_left
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from flexmix.documents.source import Conversation, Damaged, Message
from flexo.errors import InputError

FILE = "chat_template.jinja"
FILES = (FILE, "tokenizer_config.json", "special_tokens_map.json", "chat_template.json")  # what a template is read from
ASSISTANT = "assistant"
MARK = "\U0010fffd"  # stands in contents that spell a special token, until the text is written; no character at all
GENERATION = re.compile(r"\{%-?\s*generation\s*-?%\}")
TODAY = "{%- macro strftime_now(format) -%}01 January 2026{%- endmacro -%}"  # or every day would give another text
SPECIAL = re.compile(r"(bos|eos|unk|sep|pad|cls|mask)_token")


class NoTemplateError(InputError):
    """A model has no chat template, and there is a conversation to be written out."""


@dataclass(frozen=True)
class ChatTemplate:
    """A model's way to write conversations.

    Args:
        template: of Jinja, None where the model has none.
        variables: the special tokens that a template may name.
        specials: the text of all special tokens of the tokenizer.
        folder: of the model, for messages; None where text is read without one.
    """

    template: str | None
    variables: dict[str, str] = field(default_factory=dict)
    specials: tuple[str, ...] = ()
    folder: Path | None = None

    @property
    def digest(self) -> str | None:
        """What identifies the text that it makes; None without a template."""
        if self.template is None:
            return None
        return hashlib.sha256(json.dumps([self.template, self.variables], sort_keys=True).encode()).hexdigest()

    def write_out(self, messages: list[Message]) -> Conversation | Damaged:
        """The text of a conversation; `Damaged` if the template refuses it.

        A content that spells a special token does not become one.

        Raises:
            NoTemplateError: there is no template.
        """
        if self.template is None and self.folder is None:
            raise NoTemplateError(
                "a conversation, and there is no model here whose chat template could write it out. Turn conversations "
                "into text first."
            )
        if self.template is None:
            assert self.folder is not None, "checked before"
            raise NoTemplateError(
                f"a conversation, and {self.folder} has no chat template to write it out with. Save one as "
                f"{self.folder / FILE}: any chat template of transformers, the same for all owners and for the merged "
                "model. Or turn conversations into text."
            )
        marked = [message | {"content": self._guarded(message["content"])} for message in messages]
        try:
            text, answers = self._answers(marked)
        except ValueError as error:
            return Damaged(f"the chat template does not take this conversation ({error}).", repr(messages))
        marks = [n for n, sign in enumerate(text) if sign == MARK] if MARK in text else []
        if any(MARK in message["content"] for message in messages):
            return Damaged(f"the character {MARK!r}, which is none.", repr(messages))
        spans = tuple((first - bisect_left(marks, first), last - bisect_left(marks, last)) for first, last in answers)
        spelled = tuple(at - n for n, at in enumerate(marks))
        return Conversation(text.replace(MARK, ""), spans, spelled, messages)

    def _guarded(self, content: str) -> str:
        """A content with a mark in each special token that it spells, which tells it from the template's own."""
        for token in self.specials:
            if token in content:
                content = content.replace(token, token[:1] + MARK + token[1:])
        return content

    def _answers(self, messages: list[Message]) -> tuple[str, list[tuple[int, int]]]:
        """The text, and where the answers are in it; raises `ValueError` if the template refuses or changes them."""
        assert self.template is not None, "asked for before"
        if GENERATION.search(self.template):
            return self._written(messages, marked=True)
        text, _ = self._written(messages)
        answers: list[tuple[int, int]] = []
        for n, message in enumerate(messages):
            content = message["content"].strip()
            if message["role"] != ASSISTANT or not content:
                continue
            prompt = self._written(messages[:n], prompt=True)[0] if n else ""
            alone = self._written(messages[: n + 1])[0]  # as the last message: what is behind it ends an answer
            at, last = (where.find(content, _shared(prompt, where)) + len(content) for where in (text, alone))
            if min(at, last) < len(content):  # one of them was not found
                raise ValueError(
                    f"it does not write message {n + 1} as it is, behind what comes before. Mark the answers in it "
                    "with {% generation %} and {% endgeneration %}"
                )
            answers.append((at - len(content), at + _shared(alone[last:], text[at:])))
        return text, answers

    def _written(
        self, messages: list[Message], prompt: bool = False, marked: bool = False
    ) -> tuple[str, list[tuple[int, int]]]:
        import jinja2
        from transformers.utils.chat_template_utils import render_jinja_template

        assert self.template is not None, "asked for before"
        template = TODAY + self.template if "strftime_now" in self.template else self.template
        render: Any = render_jinja_template  # its types there are not those of what it returns
        try:
            texts, spans = render(
                [messages], chat_template=template, add_generation_prompt=prompt, return_assistant_tokens_mask=marked,
                **self.variables,
            )  # fmt: skip
        except jinja2.TemplateSyntaxError as error:
            raise InputError(f"{self.folder}: its chat template is no template ({error}). Mend it.") from None
        except (jinja2.TemplateError, TypeError, KeyError, AttributeError) as error:
            raise ValueError(str(error)) from None
        return texts[0], list(spans[0]) if marked else []


def find_template(folder: Path) -> ChatTemplate:
    """The chat template of a model folder, which may be missing; raises `InputError` for files that are no JSON."""
    config = _json(folder / "tokenizer_config.json")
    found: Any = config.get("chat_template") or _json(folder / "chat_template.json").get("chat_template")
    if isinstance(found, list):  # several with names
        found = {entry["name"]: entry["template"] for entry in found}.get("default")
    if (path := folder / FILE).is_file():
        found = path.read_text(encoding="utf-8")
    variables = {}
    for name, token in (_json(folder / "special_tokens_map.json") | config).items():
        token = token.get("content") if isinstance(token, dict) else token
        if SPECIAL.fullmatch(name) and isinstance(token, str):
            variables[name] = token
    added = _json(folder / "tokenizer.json").get("added_tokens", [])
    specials = [token["content"] for token in added if token.get("special") and len(token["content"]) > 1]
    longest_first = tuple(sorted(specials, key=len, reverse=True))
    return ChatTemplate(found if isinstance(found, str) else None, variables, longest_first, folder)


def messages_of(value: object) -> list[Message] | str:
    """The messages of a conversation as transformers takes them, or what is wrong with them.

    A content may be a list of parts of text; fields without a value are left out.
    """
    if not isinstance(value, list):
        return f"{type(value).__name__}, expected a list of messages"
    messages: list[Message] = []
    for n, message in enumerate(value, 1):
        if not isinstance(message, dict) or not isinstance(message.get("role"), str):
            keys = ", ".join(map(repr, message)) if isinstance(message, dict) else type(message).__name__
            return f"message {n} with {keys or 'nothing'}, expected 'role' and 'content'"
        content = _content(message.get("content"))
        if content is None:
            return f"message {n} with a content of {type(message['content']).__name__}, expected text"
        try:
            content.encode("utf-8")
        except UnicodeEncodeError:
            return f"message {n} with half of a surrogate pair, which is no character"
        messages.append({name: part for name, part in message.items() if part is not None} | {"content": content})
    return messages


def _content(content: object) -> str | None:
    if content is None:
        return ""
    if isinstance(content, list) and all(
        isinstance(part, dict) and isinstance(part.get("text"), str) for part in content
    ):
        return "".join(part["text"] for part in content)
    return content if isinstance(content, str) else None


def _shared(beginning: str, text: str) -> int:
    """How many characters of a text are those of a beginning of it, which may differ at its own end."""
    if text.startswith(beginning):
        return len(beginning)
    same, other = 0, min(len(beginning), len(text)) + 1  # so many are the same, so many are not
    while other - same > 1:
        middle = (same + other) // 2
        if text[same:middle] == beginning[same:middle]:
            same = middle
        else:
            other = middle
    return same


def _json(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise InputError(f"{path}: not JSON ({error}). Copy it again.") from None
    return found if isinstance(found, dict) else {}
