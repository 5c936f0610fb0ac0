"""What engines have in common: the jobs on their way and what is said of them; and a model in this process."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from flexo.errors import InputError
from flexo.model_config import position_limit
from inference.router_health import layers_that_choose
from inference.select import expert_names
from serving.engines.answering import Answering
from serving.engines.engine import Ended, EngineOptions, Event, Failed, Job, Sink, entitled
from serving.engines.sampling import Choice, choose, scores


@dataclass(frozen=True)
class Served:
    """What an engine knows of the model that it serves."""

    folder: Path
    experts: list[str]  # `public` first
    chooses: list[bool]  # whether the experts of each layer differ; the others do not count in shares
    positions: float  # tokens of a prompt and its answer
    ends: set[int]  # tokens that end an answer
    tokenizer: Any

    @classmethod
    def of(cls, model: Any, tokenizer: Any) -> Served:
        """Of a merged model that is loaded."""
        ends = model.generation_config.eos_token_id
        return cls(
            Path(str(model.name_or_path)),
            expert_names(model),
            layers_that_choose(model.model.layers),
            position_limit(model.config.max_position_embeddings),
            set(ends if isinstance(ends, list) else [ends]) - {None},
            tokenizer,
        )


class AnsweringEngine:
    """The jobs on their way, whatever runs the model. `submit` and `cancel` may be called from any thread.

    Args:
        served: the model.
        sink: told what becomes of the jobs.
        options: how it runs.
    """

    def __init__(self, served: Served, sink: Sink, options: EngineOptions) -> None:
        self.served, self.options, self.known = served, options, served.experts
        self.limit = int(min(served.positions, options.blocks * options.block_tokens))  # of one job
        self._sink = sink
        self._lock = threading.Lock()
        self._answering: dict[str, Answering] = {}
        self._events: list[tuple[str, Event]] = []  # of this pass

    def cancel(self, job: str) -> None:
        """Ends a job, which is not heard of any more; unknown ones are ignored."""
        self.forget(job)

    def close(self) -> None:
        """Stops, and fails what is unfinished."""
        for job in list(self._answering):
            self.fail(job, "the engine was stopped.", again=True)

    def submit(self, job: Job) -> None:
        allowed = entitled(job, self.known)
        if not job.tokens or len(job.tokens) + job.max_tokens > self.limit:
            raise InputError(
                f"{len(job.tokens)} tokens of prompt and {job.max_tokens} new ones: expected at least one, and at most "
                f"{self.limit} in all. Shorten the prompt or ask for fewer."
            )
        with self._lock:
            assert job.id not in self._answering, f"job {job.id} is there already"
            self._answering[job.id] = Answering(job, allowed, self.served.tokenizer, self.served.ends)

    def answering(self, job: str) -> Answering | None:
        """A job on its way; None if it has ended or was cancelled."""
        with self._lock:
            return self._answering.get(job)

    def forget(self, job: str) -> bool:
        """Says nothing more of a job; False if it was forgotten already."""
        with self._lock:
            return self._answering.pop(job, None) is not None

    def fail(self, job: str, why: str, again: bool) -> None:
        """Ends a job that cannot be done."""
        if self.forget(job):
            self._sink([(job, Failed(why, again))])

    def take(self, answer: Answering, choice: Choice | None, shares: list[float]) -> tuple[int, bool]:
        """Adds a token to an answer; the token, and whether the job is over."""
        events = answer.add(choice, shares)
        over = isinstance(events[-1], Ended | Failed)
        if not over or self.forget(answer.job.id):
            self._events += [(answer.job.id, event) for event in events]
        return (choice.token if choice else 0), over

    def tell(self) -> None:
        """Gives away what the pass has brought."""
        events, self._events = self._events, []
        if events:
            self._sink(events)


class LocalEngine(AnsweringEngine):
    """A model in this process. Its one thread runs passes.

    Args:
        model: a merged model in evaluation mode, which nobody else may use until `close`.
        tokenizer: its tokenizer.
        sink: told what becomes of the jobs.
        options: how it runs.
    """

    def __init__(self, model: Any, tokenizer: Any, sink: Sink, options: EngineOptions) -> None:
        super().__init__(Served.of(model, tokenizer), sink, options)
        self.model = model

    def record_prompt(self, answer: Answering, first: int, logits_TV: torch.Tensor) -> None:
        """Keeps what the logits say of a prompt's tokens, the first of them at place `first`."""
        tokens = answer.job.tokens[first : first + len(logits_TV)]
        found = scores(logits_TV[: len(tokens)], tokens, answer.job.top)
        answer.scored.update(enumerate(found, first))

    def extend(
        self, jobs: Sequence[str], logits_RV: torch.Tensor, shares_RE: Sequence[list[float]]
    ) -> list[tuple[int, bool]]:
        """Chooses the next token of each job; for each, the token and whether the job is over."""
        answers = [self.answering(job) for job in jobs]
        rows = [row for row, answer in enumerate(answers) if answer]
        going = [answer for answer in answers if answer]
        chosen = choose(logits_RV[rows], [answer.job for answer in going], [answer.die for answer in going])
        found = [(0, True)] * len(jobs)  # what was cancelled meanwhile
        for row, answer, choice in zip(rows, going, chosen, strict=True):
            found[row] = self.take(answer, choice, shares_RE[row])
        return found
