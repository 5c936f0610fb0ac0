"""How well a score tells members from non-members, with bootstrap intervals.

N members, M non-members; a higher score says "member".
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

RESAMPLES = 1000
INTERVAL = 0.95

Floats = npt.NDArray[np.float64]
Statistic = Callable[..., float]


@dataclass(frozen=True)
class Estimate:
    """A figure and its bootstrap interval."""

    value: float
    low: float
    high: float


def auc(member_N: Floats, other_M: Floats) -> float:
    """The chance that a member scores above a non-member, ties counted half: the area under the ROC curve."""
    other_M = np.sort(other_M)
    below = np.searchsorted(other_M, member_N, side="left").sum()
    not_above = np.searchsorted(other_M, member_N, side="right").sum()
    return float((below + not_above) / 2 / (len(member_N) * len(other_M)))


def found_at(false_share: float) -> Statistic:
    """The share of members found by the lowest threshold that at most `false_share` of non-members pass.

    With fewer than `1 / false_share` non-members that is a threshold above all of them.
    """

    def statistic(member_N: Floats, other_M: Floats) -> float:
        threshold = np.sort(other_M)[::-1][int(false_share * len(other_M) + 1e-9)]
        return float((member_N > threshold).mean())

    return statistic


def bootstrap(statistic: Statistic, *samples: Floats, seed: int = 0) -> Estimate:
    """A statistic of independent samples, and the interval in which it lies for 95 % of resamples with replacement."""
    rng = np.random.default_rng(seed)
    drawn = [
        statistic(*(sample[rng.integers(len(sample), size=len(sample))] for sample in samples))
        for _ in range(RESAMPLES)
    ]
    low, high = np.quantile(drawn, [(1 - INTERVAL) / 2, (1 + INTERVAL) / 2])
    return Estimate(statistic(*samples), float(low), float(high))


def share(hit_N: npt.NDArray[np.bool_]) -> Estimate:
    """The share of successes, with the interval of Wilson (1927), which is more than 0 wide even at no success."""
    n, p, z = len(hit_N), float(hit_N.mean()), 1.959964
    middle, half = p + z * z / (2 * n), z * (p * (1 - p) / n + z * z / (4 * n * n)) ** 0.5
    return Estimate(p, max(0.0, (middle - half) / (1 + z * z / n)), min(1.0, (middle + half) / (1 + z * z / n)))
