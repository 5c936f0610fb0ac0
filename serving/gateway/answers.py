"""From what engines say to OpenAI's response objects, whole or as a stream of events."""

from __future__ import annotations

import json
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from serving.engines.engine import Ended, Event, Job, Made, Ranked, Scored
from serving.gateway.asking import Asked


@dataclass
class Choice:
    """One answer so far."""

    index: int
    job: Job
    made: list[Made] = field(default_factory=list)
    scored: Scored | None = None
    ended: Ended | None = None

    def add(self, event: Event) -> None:
        if isinstance(event, Made):
            self.made.append(event)
        elif isinstance(event, Scored):
            self.scored = event
        elif isinstance(event, Ended):
            self.ended = event

    @property
    def text(self) -> str:
        return "".join(made.text for made in self.made) + (self.ended.text if self.ended else "")


class Response:
    """The response to one request: its answers, and what they came to."""

    def __init__(self, asked: Asked) -> None:
        self.asked, self.created = asked, int(time.time())
        self.choices = [Choice(index, job) for index, job in enumerate(asked.jobs)]
        self._decoded: dict[int, str] = {}
        self._places = [asked.served.names.index(name) for name in asked.experts]

    @property
    def completion_tokens(self) -> int:
        return sum(len(choice.made) for choice in self.choices)

    @property
    def prompt_tokens(self) -> int:
        """Each prompt once, however many answers it gets."""
        return sum(map(len, self.asked.prompts))

    def shares(self) -> dict[str, float]:
        """Each expert's part in the answers that were told, by tokens; sums to 1. Empty before the first token."""
        made = [made for choice in self.choices for made in choice.made]
        sums = [sum(one.shares[place] for one in made) for place in self._places]
        return dict(zip(self.asked.experts, [total / len(made) for total in sums], strict=True)) if made else {}

    def usage(self) -> dict[str, Any]:
        cached = sum(choice.ended.cached for choice in self.choices[:: self.asked.body.n or 1] if choice.ended)
        return {
            "prompt_tokens": self.prompt_tokens,
            "completion_tokens": self.completion_tokens,
            "total_tokens": self.prompt_tokens + self.completion_tokens,
            "prompt_tokens_details": {"cached_tokens": cached},
            "shares": self.shares(),
        }

    def whole(self) -> dict[str, Any]:
        """The body of a response that is not streamed."""
        kind = "chat.completion" if self.asked.chat else "text_completion"
        return self._frame(kind, [self._whole(choice) for choice in self.choices]) | {"usage": self.usage()}

    def chunk(self, choice: Choice, event: Event) -> str | None:
        """What a stream says of an event; None if there is nothing to say."""
        text = ""
        if isinstance(event, Scored):
            text = self._echo(choice)
        elif isinstance(event, Made | Ended):
            text = event.text
        reason = event.reason if isinstance(event, Ended) else None
        tokens = [event] if isinstance(event, Made) else []
        if not (text or reason or (tokens and self.asked.logprobs)):
            return None
        logprobs = self._logprobs(choice, tokens, event if isinstance(event, Scored) else None)
        part: dict[str, Any] = {"index": choice.index, "finish_reason": reason, "logprobs": logprobs}
        part |= {"delta": {"content": text} if text else {}} if self.asked.chat else {"text": text}
        if self.asked.body.shares and tokens:
            part["tokens"] = self._shares(tokens)
        kind = "chat.completion.chunk" if self.asked.chat else "text_completion"
        return sse(self._frame(kind, [part]))

    def first_chunks(self) -> Iterable[str]:
        """What a stream begins with: the role in chats, and prompts that are to be repeated."""
        for choice in self.choices:
            if self.asked.chat:
                part = {"index": choice.index, "delta": {"role": "assistant", "content": ""}, "finish_reason": None}
                yield sse(self._frame("chat.completion.chunk", [part]))
            elif self.asked.echo and not self.asked.logprobs:
                part = {"index": choice.index, "text": self._echo(choice), "finish_reason": None, "logprobs": None}
                yield sse(self._frame("text_completion", [part]))

    def last_chunk(self) -> str:
        """The usage, with no choice."""
        kind = "chat.completion.chunk" if self.asked.chat else "text_completion"
        return sse(self._frame(kind, []) | {"usage": self.usage()})

    def _frame(self, kind: str, choices: list[dict[str, Any]]) -> dict[str, Any]:
        served = self.asked.served
        return {
            "id": self.asked.id,
            "object": kind,
            "created": self.created,
            "model": served.name,
            "system_fingerprint": served.digest[:16],
            "choices": choices,
        }

    def _whole(self, choice: Choice) -> dict[str, Any]:
        part: dict[str, Any] = {"index": choice.index, "finish_reason": choice.ended.reason if choice.ended else None}
        part["logprobs"] = self._logprobs(choice, choice.made, choice.scored)
        if self.asked.chat:
            part["message"] = {"role": "assistant", "content": choice.text}
        else:
            part["text"] = (self._echo(choice) if self.asked.echo else "") + choice.text
        if self.asked.body.shares:
            part["tokens"] = self._shares(choice.made)
        return part

    def _echo(self, choice: Choice) -> str:
        """The prompt's text, without what was put in front of it."""
        tokens = list(choice.job.tokens)[self.asked.hidden :]
        return str(self.asked.served.tokenizer.decode(tokens, skip_special_tokens=False))

    def _shares(self, tokens: Iterable[Made]) -> list[dict[str, Any]]:
        """Of the experts that the request may use; names of others are nobody's business."""
        mine = list(zip(self.asked.experts, self._places, strict=True))
        return [{"text": made.text, "shares": {name: made.shares[place] for name, place in mine}} for made in tokens]

    def _logprobs(self, choice: Choice, tokens: Sequence[Made], scored: Scored | None) -> dict[str, Any] | None:
        if not self.asked.logprobs:
            return None
        listed: list[tuple[int, float | None, Ranked]] = []
        if scored:
            listed += scored.tokens[max(0, self.asked.hidden - 1) :]
            if not self.asked.hidden:
                listed.insert(0, (choice.job.tokens[0], None, []))
        listed += [(made.token, made.logprob, made.top) for made in tokens]
        if self.asked.chat:
            return {"content": [self._chat_logprob(*one) for one in listed]}
        texts = [self._name(token) for token, *_ in listed]
        offsets = _offsets(texts)
        return {
            "tokens": texts,
            "token_logprobs": [logprob for _, logprob, _ in listed],
            "top_logprobs": [{self._name(token): p for token, p in top} if top else None for *_, top in listed],
            "text_offset": offsets,
        }

    def _chat_logprob(self, token: int, logprob: float | None, top: Ranked) -> dict[str, Any]:
        one = self._named(token, logprob)
        return one | {"top_logprobs": [self._named(other, p) for other, p in top]}

    def _named(self, token: int, logprob: float | None) -> dict[str, Any]:
        name = self._name(token)
        return {"token": name, "logprob": logprob, "bytes": list(name.encode())}

    def _name(self, token: int) -> str:
        """A token's text; its name in the vocabulary where it is only part of a character."""
        if token not in self._decoded:
            tokenizer = self.asked.served.tokenizer
            text = str(tokenizer.decode([token], skip_special_tokens=False))
            whole = text and "\ufffd" not in text
            self._decoded[token] = text if whole else str(tokenizer.convert_ids_to_tokens(token))
        return self._decoded[token]


def _offsets(texts: list[str]) -> list[int]:
    """Where each text begins in all of them."""
    found, at = [], 0
    for text in texts:
        found.append(at)
        at += len(text)
    return found


def sse(value: dict[str, Any]) -> str:
    """An event of a stream."""
    return f"data: {json.dumps(value, allow_nan=False)}\n\n"
