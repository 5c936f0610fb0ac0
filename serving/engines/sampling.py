"""The next token of each request in a pass, by the request's own temperature, top_p and seed.

R requests, V tokens of the vocabulary.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch

from serving.engines.engine import Job, Ranked


class Choice(NamedTuple):
    """A token that was chosen, with the model's own log-probabilities."""

    token: int
    logprob: float
    top: Ranked


def choose(logits_RV: torch.Tensor, jobs: Sequence[Job], dice: Sequence[torch.Generator]) -> list[Choice | None]:
    """One token for each job; None where the logits are not finite, as behind a broken expert."""
    logits_RV = logits_RV.float()
    logp_RV = logits_RV.log_softmax(-1)
    finite, likeliest = logits_RV.isfinite().all(-1).tolist(), logits_RV.argmax(-1).tolist()
    tokens = [
        draw(logits_V, job, die) if job.temperature and fine else best
        for logits_V, job, die, fine, best in zip(logits_RV, jobs, dice, finite, likeliest, strict=True)
    ]
    logprobs = logp_RV.gather(1, torch.tensor(tokens, device=logp_RV.device)[:, None])[:, 0].tolist()
    return [
        Choice(token, logprob, ranked(logp_V, job.top)) if fine else None
        for token, logprob, logp_V, job, fine in zip(tokens, logprobs, logp_RV, jobs, finite, strict=True)
    ]


def draw(logits_V: torch.Tensor, job: Job, die: torch.Generator) -> int:
    """A token at random: from the smallest set of the likeliest whose mass reaches top_p (Holtzman et al. 2020)."""
    p_V, token_V = (logits_V.double() / job.temperature).softmax(-1).sort(descending=True)
    kept_V = p_V.cumsum(-1) - p_V < job.top_p
    kept_V[0] = True
    return int(token_V[torch.multinomial((p_V * kept_V).cpu(), 1, generator=die)])


def ranked(logp_V: torch.Tensor, count: int) -> Ranked:
    if not count:
        return []
    top = logp_V.topk(min(count, len(logp_V)))
    return list(zip(top.indices.tolist(), top.values.tolist(), strict=True))


def scores(logits_TV: torch.Tensor, following: Sequence[int], top: int) -> list[tuple[int, float, Ranked]]:
    """Tokens of a prompt by the logits in front of each."""
    logp_TV = logits_TV.float().log_softmax(-1)
    found = logp_TV.gather(1, torch.tensor(following, device=logp_TV.device)[:, None])[:, 0].tolist()
    return [(token, worst(p), ranked(row, top)) for token, p, row in zip(following, found, logp_TV, strict=True)]


def worst(logprob: float) -> float:
    """A log-probability that JSON can hold."""
    return logprob if math.isfinite(logprob) else -9999.0


def seeded(seed: int | None) -> torch.Generator:
    """A generator of a job's own, so that others in the batch change nothing; without a seed, a new one each time."""
    die = torch.Generator()
    if seed is None:
        die.seed()
    else:
        die.manual_seed(seed)
    return die
