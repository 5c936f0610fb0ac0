"""A lower bound on epsilon from one training run with canaries that were in it or not by fair coins.

Steinke, Nasr and Jagielski 2023, "Privacy auditing with one (1) training run" (arXiv 2305.08846), Theorem 5.2. Of m
canaries, each in the text with probability 1/2, an attacker guesses r and abstains from the others. If training is
(epsilon, delta)-private, for adding or removing one canary, the chance of v right guesses or more is at most

    f(v) + 2 m delta max over i from 1 to v of (f(v - i) - f(v)) / i,   f(v) = P[Binomial(r, q) >= v],

where q = e^epsilon / (1 + e^epsilon) is how often a guess is right at most. An epsilon under which what was seen has a
chance below 5 % is refuted; the largest such is the bound.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cache

import numpy as np
import numpy.typing as npt

CONFIDENCE = 0.95
GUESSED = (0.02, 0.05, 0.1, 0.2, 0.4)  # share of the canaries guessed to be in, and as many out; fixed before looking
HIGHEST = 30.0  # epsilon; nothing above it can be told from m guesses

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Audit:
    """What the canaries prove."""

    epsilon: float  # training was not (epsilon, delta)-private for any smaller one, with `CONFIDENCE`
    guesses: int  # of the size of `GUESSED` that gives the bound
    right: int
    canaries: int


def audit(score_M: Floats, is_in_M: npt.NDArray[np.bool_], delta: float) -> Audit:
    """The bound from scores of canaries [M]: the highest are guessed to be in the text, the lowest not.

    Every size of `GUESSED` is tried at its part of the 5 %, so that the best of them may be taken.
    """
    order_M = np.argsort(-score_M, kind="stable")
    sizes = [max(1, round(share * len(order_M))) for share in GUESSED]
    found = []
    for size in sizes:
        right = int(is_in_M[order_M[:size]].sum() + (~is_in_M[order_M[-size:]]).sum())
        bound = lower_bound(len(order_M), 2 * size, right, delta, (1 - CONFIDENCE) / len(sizes))
        found.append(Audit(bound, 2 * size, right, len(order_M)))
    return max(found, key=lambda one: one.epsilon)


def lower_bound(canaries: int, guesses: int, right: int, delta: float, p: float) -> float:
    """The largest epsilon that `right` of so many `guesses` refute with a chance of error of at most `p`; 0 if none."""
    low, high = 0.0, HIGHEST
    if p_value(canaries, guesses, right, 0.0, delta) >= p:
        return 0.0
    while high - low > 1e-4:
        middle = (low + high) / 2
        low, high = (middle, high) if p_value(canaries, guesses, right, middle, delta) < p else (low, middle)
    return low


def p_value(canaries: int, guesses: int, right: int, epsilon: float, delta: float) -> float:
    """The greatest chance that (epsilon, delta)-private training leaves for `right` guesses or more; see above."""
    assert 0 <= right <= guesses <= canaries and 0 <= delta <= 1 <= canaries, "guesses and canaries do not fit"
    pmf = _binomial(guesses, 1 / (1 + math.exp(-epsilon)))
    pure = math.fsum(pmf[right:])
    more = np.cumsum(pmf[:right][::-1])  # f(v - i) - f(v) for i from 1 on
    steepest = float(np.max(more / np.arange(1, right + 1))) if right else 0.0
    return min(1.0, pure + 2 * canaries * delta * steepest)


def _binomial(n: int, q: float) -> Floats:
    """P[Binomial(n, q) = k] for k from 0 to n; 0 < q < 1."""
    k_N = np.arange(n + 1)
    pmf: Floats = np.exp(_log_choose(n) + k_N * math.log(q) + (n - k_N) * math.log1p(-q))
    return pmf


@cache
def _log_choose(n: int) -> Floats:
    return np.array([math.lgamma(n + 1) - math.lgamma(k + 1) - math.lgamma(n - k + 1) for k in range(n + 1)])
