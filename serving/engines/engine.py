"""What every engine understands and says, so that a gateway need not know which one it has.

engine.submit(Job("a", "alice", ["public", "math"], tokens, max_tokens=20))
# its sink is told [("a", Made(...)), ...] after each pass, and at last ("a", Ended(...)) or ("a", Failed(...))
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol

from flexo.errors import InputError

Ranked = list[tuple[int, float]]  # tokens and their log-probabilities, the likeliest first


class NotEntitledError(InputError):
    """A job names no expert, one twice, or one that the model does not have."""


@dataclass(frozen=True)
class Job:
    """One prompt to be continued once.

    Log-probabilities are the model's own, before temperature and top_p.
    """

    id: str  # never used twice
    tenant: str  # prompts of different tenants share no cache
    experts: Sequence[str]
    tokens: Sequence[int]  # of the prompt
    max_tokens: int
    temperature: float = 0.0  # 0 takes the likeliest
    top_p: float = 1.0
    seed: int | None = None
    stop: Sequence[str] = ()  # texts that end the answer, and are not part of it
    top: int = 0  # how many likely tokens to list beside each token
    score: bool = False  # log-probabilities of the prompt, too


class Made(NamedTuple):
    """A token of the answer."""

    token: int
    text: str  # what can be shown now; a token that ends within a character shows nothing yet
    logprob: float
    top: Ranked
    shares: list[float]  # of the experts, in the order of the model


class Scored(NamedTuple):
    """The prompt's tokens from the second on, each with its log-probability and the likeliest in its place."""

    tokens: list[tuple[int, float, Ranked]]


class Ended(NamedTuple):
    """The last of an answer."""

    reason: str  # `stop` or `length`, as OpenAI calls them
    text: str  # what was held back
    shares: list[float]  # mean over the answer's tokens
    cached: int  # tokens of the prompt that were not computed anew


class Failed(NamedTuple):
    """The last of a job that could not be done."""

    why: str
    again: bool  # whether it may work elsewhere


Event = Made | Scored | Ended | Failed
Sink = Callable[[list[tuple[str, Event]]], None]  # called from any thread, and must not wait


class Engine(Protocol):
    """What runs a model. Methods may be called from any thread."""

    def submit(self, job: Job) -> None:
        """Takes a job; raises `NotEntitledError`, or `InputError` if it is longer than the engine can hold."""

    def cancel(self, job: str) -> None:
        """Ends a job, which is not heard of any more; unknown ones are ignored."""

    def close(self) -> None:
        """Stops, and fails what is unfinished."""


@dataclass(frozen=True)
class EngineOptions:
    """How an engine runs."""

    kind: str = "packed"  # or `padded`, or `vllm`
    dtype: str = "auto"
    device: str = "auto"
    at_once: int = 32  # requests in one pass
    pass_tokens: int = 1024  # tokens in one pass
    block_tokens: int = 32  # tokens in a block of the cache
    blocks: int = 512
    share_prefixes: bool = True  # the same beginning is computed once for a tenant and a set of experts
    verify: bool = True  # compare every tensor with the manifest before it is loaded
    python: str = ""  # of `vllm`: the interpreter of vLLM's environment
    arguments: Mapping[str, object] = field(default_factory=dict)  # of `vllm`: more `EngineArgs`


def entitled(job: Job, known: Sequence[str]) -> list[bool]:
    """Which of the `known` experts a job may use; raises `NotEntitledError`. An empty set never means all."""
    if not job.experts or len(set(job.experts)) != len(job.experts) or not set(job.experts) <= set(known):
        raise NotEntitledError(
            f"experts {', '.join(map(repr, job.experts)) or '(none)'}: expected one or more of {', '.join(known)}, "
            "each named once."
        )
    return [name in job.experts for name in known]
