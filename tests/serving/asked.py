"""Thirty requests of six sets of experts, what each gets alone under `select_experts`, and engines to ask together."""

from __future__ import annotations

import threading
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from inference.attribution import attribute
from inference.load import load_model
from inference.select import select_experts
from serving.engines.engine import Ended, EngineOptions, Event, Failed, Job, Made, Scored
from serving.engines.local import AnsweringEngine, Served
from serving.engines.packed import PackedEngine
from serving.engines.padded import PaddedEngine
from serving.engines.vllm import VllmEngine

SETS = [["public"], ["public", "math"], ["public", "code"], ["public", "math", "news"],
        ["public", "math", "news", "code"], ["math"]]  # fmt: skip
ENGINES = {"packed": PackedEngine, "padded": PaddedEngine}
SMALL = EngineOptions(dtype="float32", device="cpu", pass_tokens=256, block_tokens=4, blocks=256)
SECONDS = 300.0  # for a machine with other work on it
ROUNDING = 0.05  # nats per token between bfloat16 and float32; between two sets it is 0.3 and more


def requests() -> list[Job]:
    """Twenty-four prompts of uneven length, and one prompt under each of the six sets."""
    dice = torch.Generator().manual_seed(0)
    prompts = [torch.randint(3, 96, (length,), generator=dice).tolist() for length in (3, 21, 9, 14) * 6]
    prompts += [torch.randint(3, 96, (17,), generator=dice).tolist()] * 6
    return [
        Job(f"r{n}", "alice", SETS[n % 6], prompt, max_tokens=4 + n % 5, top=2, score=n % 2 == 0)
        for n, prompt in enumerate(prompts)
    ]


@dataclass(frozen=True)
class Alone:
    """What one request gets when nobody else is there."""

    job: Job
    tokens: list[int]
    logprobs: list[float]
    prompt: list[float]  # log-probabilities of the prompt's tokens from the second on
    shares: list[float]


@torch.inference_mode()
def alone(folder: Path, jobs: Iterable[Job]) -> list[Alone]:
    model, _ = load_model(folder, "float32", "cpu")
    run: Any = model
    found = []
    for job in jobs:
        x_1T = torch.tensor([list(job.tokens)])
        with select_experts(model, job.experts), attribute(model) as record:
            logp_TV = run(x_1T).logits[0].log_softmax(-1)
            prompt = logp_TV[:-1].gather(1, x_1T[0, 1:, None])[:, 0].tolist()
            made = run.generate(
                x_1T, max_new_tokens=job.max_tokens, do_sample=False, output_logits=True, return_dict_in_generate=True
            )
            tokens = made.sequences[0, x_1T.shape[1] :].tolist()
            logprobs = [step[0].log_softmax(-1)[token].item() for step, token in zip(made.logits, tokens, strict=True)]
            shares = list(record.answers(made.sequences, x_1T.shape[1])[0].shares.values())
        found.append(Alone(job, tokens, logprobs, prompt, shares))
    return found


class Asked:
    """An engine with the tiny model, and what it said."""

    def __init__(self, folder: Path, kind: str = "packed", options: EngineOptions = SMALL) -> None:
        self.model, self.tokenizer = load_model(folder, options.dtype, "cpu")
        self.events: dict[str, list[Event]] = defaultdict(list)
        self._heard, self.died = threading.Condition(), threading.Event()
        self.engine: AnsweringEngine
        if kind == "vllm":
            self.engine = VllmEngine(Served.of(self.model, self.tokenizer), self.hear, options, self.died.set)
        else:
            self.engine = ENGINES[kind](self.model, self.tokenizer, self.hear, options)

    def __enter__(self) -> Asked:
        return self

    def __exit__(self, *_: object) -> None:
        self.engine.close()

    def hear(self, events: list[tuple[str, Event]]) -> None:
        with self._heard:
            for job, event in events:
                self.events[job].append(event)
            self._heard.notify_all()

    def wait(self, jobs: Iterable[str], tokens: int | None = None) -> None:
        """Until all these have ended, or have so many tokens."""

        def heard(job: str) -> bool:
            over = any(isinstance(event, Ended | Failed) for event in self.events[job])
            return over or (tokens is not None and len(self.made(job)) >= tokens)

        names = list(jobs)
        with self._heard:
            assert self._heard.wait_for(lambda: all(map(heard, names)), SECONDS), "nothing is heard"

    def ask(self, jobs: Sequence[Job]) -> None:
        for job in jobs:
            self.engine.submit(job)
        self.wait(job.id for job in jobs)

    def made(self, job: str) -> list[Made]:
        return [event for event in self.events[job] if isinstance(event, Made)]

    def ended(self, job: str) -> Ended:
        last = self.events[job][-1]
        assert isinstance(last, Ended), last
        return last

    def text(self, job: str) -> str:
        return "".join(made.text for made in self.made(job)) + self.ended(job).text

    def agrees(self, expected: Alone, job: str | None = None) -> None:
        """Asserts that an answer is what the request gets alone."""
        job = job or expected.job.id
        made = self.made(job)
        assert [one.token for one in made] == expected.tokens
        close([one.logprob for one in made], expected.logprobs, 2e-5)
        close(self.ended(job).shares, expected.shares, 1e-6)
        scored = [event for event in self.events[job] if isinstance(event, Scored)]
        if expected.job.score:
            assert [token for token, *_ in scored[0].tokens] == list(expected.job.tokens[1:])
            close([logprob for _, logprob, _ in scored[0].tokens], expected.prompt, 2e-5)
        else:
            assert not scored

    def agrees_roughly(self, expected: Sequence[Alone]) -> None:
        """Asserts that half precision scores prompts as float32 does, up to rounding, and better than other sets do."""
        found = [[logprob for _, logprob, _ in self.scored(one.job.id).tokens] for one in expected]
        for one, mine in zip(expected, found, strict=True):
            assert _apart(mine, one.prompt) < ROUNDING, one.job
        six = found[-6:]  # one prompt under each set
        for n, one in enumerate(expected[-6:]):
            assert min(range(6), key=lambda other: _apart(six[other], one.prompt)) == n

    def scored(self, job: str) -> Scored:
        return next(event for event in self.events[job] if isinstance(event, Scored))


def _apart(found: Sequence[float], expected: Sequence[float]) -> float:
    """Mean difference of log-probabilities, nats."""
    return float((torch.tensor(found) - torch.tensor(expected)).abs().mean())


def close(found: Sequence[float], expected: Sequence[float], by: float) -> None:
    torch.testing.assert_close(torch.tensor(found), torch.tensor(expected), rtol=0, atol=by)


def renamed(job: Job, id: str, **changes: Any) -> Job:
    return replace(job, id=id, **changes)
