"""What a private run costs: from epsilon to the noise, and from noise to epsilon, by privacy loss distributions.

A step draws each unit with probability q on its own, clips its gradient to a norm of C, and adds noise of deviation
z C to the sum. What else is released (counts, the mean of the owner's hidden states) is a Gaussian mechanism with a
noise of its own, over all units or a Poisson sample of them. All of it together is one composition, accounted by
`dp-accounting` (PLD; Koskela et al. 2020, arXiv 1906.03049); neighbours differ by the presence of one unit.
"""

from __future__ import annotations

import importlib.metadata
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

from flexo.errors import InputError

COARSE, FINE = 1e-2, 1e-3  # width of the bins of a privacy loss, for search and for what is claimed; both round up
LOWEST_NOISE, HIGHEST_NOISE = 0.1, 1e4
ACCOUNTANT = "dp-accounting PLD"


@dataclass(frozen=True)
class Release:
    """One thing that a run gives away of the owner's units: a sum over some of them, with Gaussian noise."""

    name: str
    noise: float  # deviation over the sensitivity
    rate: float = 1.0  # q, the probability with which a unit is in the sum
    times: int = 1  # with units drawn anew each time


def spent(releases: Iterable[Release], delta: float, width: float = FINE) -> float:
    """The epsilon of several releases together, at `delta`."""
    return _spent(tuple(releases), delta, width)


@lru_cache(maxsize=256)
def _spent(releases: tuple[Release, ...], delta: float, width: float) -> float:
    dp = _dp()
    from dp_accounting.pld import PLDAccountant

    accountant = PLDAccountant(dp.NeighboringRelation.ADD_OR_REMOVE_ONE, value_discretization_interval=width)
    for one in releases:
        event = dp.GaussianDpEvent(one.noise)
        accountant.compose(event if one.rate == 1 else dp.PoissonSampledDpEvent(one.rate, event), one.times)
    return float(accountant.get_epsilon(delta))


def with_noise_for(release: Release, epsilon: float, delta: float, others: Iterable[Release] = ()) -> Release:
    """The release with the smallest noise, to a thousandth, at which it costs at most `epsilon` together with `others`.

    Raises `InputError` if no noise does.
    """
    others = list(others)

    def cost(noise: float, width: float) -> float:
        return spent([*others, replace(release, noise=noise)], delta, width)

    if cost(HIGHEST_NOISE, COARSE) > epsilon:
        rest = f"; {', '.join(one.name for one in others)} alone cost {spent(others, delta):.3g}" if others else ""
        raise InputError(
            f"privacy.epsilon: no noise on the {release.name} reaches {epsilon:.3g} at delta={delta:.2g}{rest}. Give a "
            "larger privacy.epsilon, or more text."
        )
    high = _smallest(lambda noise: cost(noise, COARSE) <= epsilon)
    while cost(high, FINE) > epsilon:  # the coarse bins round up; this is the rule, not the exception
        high *= 1.001
    return replace(release, noise=high)


def _smallest(holds: Callable[[float], bool]) -> float:
    """The smallest number from `LOWEST_NOISE` on, to a thousandth, from which on something holds."""
    low, high = LOWEST_NOISE, 1.0
    while not holds(high):
        low, high = high, 2 * high
    while high - low > 1e-3 * high:
        middle = (low + high) / 2
        low, high = (low, middle) if holds(middle) else (middle, high)
    return high


def accountant_said() -> str:
    """The accountant and its version, as an expert file names it."""
    return f"{ACCOUNTANT} {importlib.metadata.version('dp-accounting')}"


def _dp() -> Any:
    try:
        import dp_accounting
    except ModuleNotFoundError:
        raise InputError("privacy=dp needs the package dp-accounting: pip install 'flexo[privacy]'") from None
    return dp_accounting
