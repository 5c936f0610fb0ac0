"""What both engines of this room have in common: a loaded model, the jobs on their way, and what is said of them."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import Any

import torch

from flexo.errors import InputError
from flexo.model_config import position_limit
from inference.select import expert_names
from serving.engines.answering import Answering
from serving.engines.engine import Ended, EngineOptions, Event, Failed, Job, Sink, entitled
from serving.engines.sampling import choose, scores


class LocalEngine:
    """A model in this process. Its one thread runs passes; `submit` and `cancel` may be called from any other.

    Args:
        model: a merged model in evaluation mode, which nobody else may use until `close`.
        tokenizer: its tokenizer.
        sink: told what becomes of the jobs.
        options: how it runs.
    """

    def __init__(self, model: Any, tokenizer: Any, sink: Sink, options: EngineOptions) -> None:
        self.model, self.tokenizer, self.options = model, tokenizer, options
        self.known = expert_names(model)
        self.limit = int(min(position_limit(model.config.max_position_embeddings), self.capacity()))
        ends = model.generation_config.eos_token_id
        self._ends = set(ends if isinstance(ends, list) else [ends]) - {None}
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

    def capacity(self) -> float:
        """Tokens that one job may have, its answer included."""
        return float("inf")

    def submit(self, job: Job) -> None:
        allowed = entitled(job, self.known)
        if not job.tokens or len(job.tokens) + job.max_tokens > self.limit:
            raise InputError(
                f"{len(job.tokens)} tokens of prompt and {job.max_tokens} new ones: expected at least one, and at most "
                f"{self.limit} in all. Shorten the prompt or ask for fewer."
            )
        with self._lock:
            assert job.id not in self._answering, f"job {job.id} is there already"
            self._answering[job.id] = Answering(job, allowed, self.tokenizer, self._ends)

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
            events = answer.add(choice, shares_RE[row])
            over = isinstance(events[-1], Ended | Failed)
            found[row] = (choice.token if choice else 0, over)
            if not over or self.forget(answer.job.id):
                self._events += [(answer.job.id, event) for event in events]
        return found

    def tell(self) -> None:
        """Gives away what the pass has brought."""
        events, self._events = self._events, []
        if events:
            self._sink(events)
