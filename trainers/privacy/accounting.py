"""What a private run costs: from epsilon to the noise, and from noise to epsilon, by privacy loss distributions.

A step draws each unit with probability q on its own, clips its gradient to a norm of C, and adds noise of deviation
z C to the sum. What further is released (the mean of the owner's hidden states) is a Gaussian mechanism over all units
with a noise of its own. All of it together is one composition, accounted by `dp-accounting` (PLD; Koskela et al. 2020,
arXiv 1906.03049); neighbours differ by the presence of one unit.
"""

from __future__ import annotations

import importlib.metadata
from dataclasses import dataclass
from typing import Any

from flexo.errors import InputError

COARSE, FINE = 1e-3, 1e-4  # width of the bins of a privacy loss, for search and for what is claimed
HIGHEST_NOISE = 1e4
ACCOUNTANT = "dp-accounting PLD"


@dataclass(frozen=True)
class Release:
    """Everything that a run releases of the owner's units."""

    steps: int
    rate: float  # q, the probability with which a step draws a unit
    moments_noise: float | None = None  # deviation of the noise on the moments, over their sensitivity; None: none

    def epsilon(self, noise: float, delta: float, width: float = FINE) -> float:
        """The epsilon of the whole release at `delta`, with a noise multiplier z on each step."""
        accountant = _accountant(width)
        dp = _dp()
        if self.moments_noise is not None:
            accountant.compose(dp.GaussianDpEvent(self.moments_noise))
        if self.steps:
            accountant.compose(dp.PoissonSampledDpEvent(self.rate, dp.GaussianDpEvent(noise)), self.steps)
        return float(accountant.get_epsilon(delta))

    def noise_for(self, epsilon: float, delta: float) -> float:
        """The smallest noise multiplier z, to a thousandth, at which the whole release costs at most `epsilon`.

        Raises `InputError` if none does.
        """
        if self.epsilon(HIGHEST_NOISE, delta, COARSE) > epsilon:
            raise InputError(
                f"privacy.epsilon={epsilon:g} at delta={delta:g}: no noise on the gradients reaches it, for the "
                "moments alone cost more. Give a larger epsilon, or a smaller privacy.moments_share."
            )
        low, high = 0.0, 1.0
        while self.epsilon(high, delta, COARSE) > epsilon:
            low, high = high, 2 * high
        while high - low > 1e-3 * high:
            middle = (low + high) / 2
            low, high = (low, middle) if self.epsilon(middle, delta, COARSE) <= epsilon else (middle, high)
        while self.epsilon(high, delta) > epsilon:  # the coarse bins round up; this is the rule, not the exception
            high *= 1.001
        return high


def gaussian_noise_for(epsilon: float, delta: float) -> float:
    """The noise multiplier of one Gaussian mechanism that costs `epsilon` at `delta`."""
    low, high = 1e-3, 1.0
    while Release(0, 1.0, high).epsilon(0.0, delta, COARSE) > epsilon:
        high *= 2
    while high - low > 1e-3 * high:
        middle = (low + high) / 2
        cheap = Release(0, 1.0, middle).epsilon(0.0, delta, COARSE) <= epsilon
        low, high = (low, middle) if cheap else (middle, high)
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


def _accountant(width: float) -> Any:
    dp = _dp()
    from dp_accounting.pld import PLDAccountant

    return PLDAccountant(dp.NeighboringRelation.ADD_OR_REMOVE_ONE, value_discretization_interval=width)
