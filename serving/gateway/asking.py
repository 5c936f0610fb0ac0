"""From a key and a body to jobs for the engines: which experts, which tokens, how many."""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from inference.prompt import added_tokens, prompt_tokens
from serving.access.errors import RequestError
from serving.engines.engine import Job
from serving.gateway.bodies import MOST_ANSWERS, Body, ChatBody, CompletionBody
from serving.gateway.pool import ServedModel

NEW_TOKENS = 16  # of completions, as with OpenAI


@dataclass(frozen=True)
class Asked:
    """One request, ready to run."""

    id: str
    chat: bool
    body: Body
    served: ServedModel
    experts: list[str]
    prompts: list[list[int]]
    jobs: list[Job]  # n for each prompt, one prompt after the other
    hidden: int  # tokens in front of each prompt that the client did not send
    logprobs: bool
    echo: bool

    @property
    def most_tokens(self) -> int:
        """What it can come to."""
        return sum(map(len, self.prompts)) + sum(job.max_tokens for job in self.jobs)


def narrowed(allowed: Sequence[str], asked: Sequence[str] | None, names: Sequence[str]) -> list[str]:
    """The experts of a request: what its key allows in this model, or those of them that it names. Never more.

    Raises:
        RequestError: 403 for a name that the key does not cover, whether the model has it or not, and for nothing left.
    """
    mine = [name for name in names if name in allowed]
    if asked is not None:
        wrong = [name for name in asked if name not in mine]
        if wrong or not asked or len(set(asked)) != len(asked):
            found = ", ".join(repr(name[:60]) for name in asked[:8]) or "none"
            raise RequestError(
                403,
                f"experts: expected some of {', '.join(mine) or 'none'}, which this key allows here, each once; got "
                f"{found}.",
                param="experts",
                code="not_entitled",
            )
        return [name for name in mine if name in asked]
    if not mine:
        raise RequestError(403, "this key allows no expert of the model that is served.", code="not_entitled")
    return mine


def asked_of(served: ServedModel, body: Body, tenant: str, allowed: Sequence[str]) -> Asked:
    """A body as jobs. It may take some time, for a long prompt is cut into tokens.

    Raises:
        RequestError: another model, experts that the key does not allow, too long a prompt, no chat template.
    """
    if body.model not in (None, served.name, "default"):
        raise RequestError(
            404, f"model {body.model[:60]!r}: not served here. Expected {served.name!r}.", "model", "model_not_found"
        )
    experts = narrowed(allowed, body.experts, served.names)
    if isinstance(body, ChatBody):
        made, hidden, most = [_chat(served, body)], 0, body.max_completion_tokens or body.max_tokens
        top, logprobs, echo = body.top_logprobs or 0, bool(body.logprobs), False
    else:
        assert isinstance(body, CompletionBody)
        found = [_prompt(served, prompt) for prompt in body.prompts]
        made, hidden, most = [tokens for tokens, _ in found], found[0][1], body.max_tokens or NEW_TOKENS
        top, logprobs, echo = body.logprobs or 0, body.logprobs is not None, bool(body.echo)
    if len(made) * (body.n or 1) > MOST_ANSWERS:
        raise RequestError(400, f"{len(made)} prompts times n of {body.n or 1}: expected at most {MOST_ANSWERS}.", "n")
    id, jobs = f"{'chatcmpl' if isinstance(body, ChatBody) else 'cmpl'}-{uuid.uuid4().hex}", []
    temperature = 1.0 if body.temperature is None else body.temperature
    for place, tokens in enumerate(made):
        room = served.limit - len(tokens)
        if not tokens or (most or 1) > room:
            raise RequestError(
                400,
                f"{len(tokens)} tokens of prompt and {most or 1} new ones: expected at most {served.limit} in all. "
                "Shorten the prompt or ask for fewer.",
                "messages" if isinstance(body, ChatBody) else "prompt",
                "context_length_exceeded",
            )
        for n in range(body.n or 1):
            seed = None if body.seed is None else (body.seed + n) % 2**63
            jobs.append(
                Job(f"{id}.{place}.{n}", tenant, experts, tokens, most or room, temperature, body.top_p or 1.0, seed,
                    body.stops, top, score=echo and logprobs)
            )  # fmt: skip
    return Asked(id, isinstance(body, ChatBody), body, served, experts, made, jobs, hidden, logprobs, echo)


def _prompt(served: ServedModel, prompt: str | list[int]) -> tuple[list[int], int]:
    """Tokens of a prompt, and how many in front were not sent."""
    if isinstance(prompt, str):
        return prompt_tokens(served.tokenizer, prompt, served.end), added_tokens(served.tokenizer, served.end)
    if wrong := [token for token in prompt if token >= served.vocabulary]:
        raise RequestError(400, f"token {wrong[0]}: this model has {served.vocabulary} tokens.", "prompt")
    first = [served.end] if served.end is not None and prompt[0] != served.end else []
    return [*first, *prompt], len(first)


def _chat(served: ServedModel, body: ChatBody) -> list[int]:
    if not served.tokenizer.chat_template:
        raise RequestError(
            400,
            f"{served.name} has no chat template, for it was not trained on conversations. Use /v1/completions.",
            "messages",
            "no_chat_template",
        )
    messages: Any = [message.plain() for message in body.messages]
    try:
        found = served.tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=False)
    except Exception as error:  # a template is a program of its own, and refuses as it likes
        raise RequestError(400, f"messages: the chat template refuses them ({str(error)[:100]}).", "messages") from None
    return list(found)
