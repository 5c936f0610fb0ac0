"""Epsilon and noise, against what is known without our code."""

from __future__ import annotations

import math

import pytest

pytest.importorskip("dp_accounting", reason="the extra privacy is not installed")

from flexo.errors import InputError
from trainers.privacy.accounting import Release, spent, with_noise_for


def gaussian_delta(epsilon: float, noise: float) -> float:
    """Of one Gaussian mechanism (Balle and Wang 2018, arXiv 1805.06530, theorem 8)."""

    def below(x: float) -> float:
        return 0.5 * math.erfc(-x / 2**0.5)

    a, b = 1 / (2 * noise), epsilon * noise
    return below(a - b) - math.exp(epsilon) * below(-a - b)


def test_one_gaussian_is_what_the_formula_says() -> None:
    noise = with_noise_for(Release("counts", 1.0), 1.0, 1e-5).noise
    assert gaussian_delta(1.0, noise) == pytest.approx(1e-5, rel=0.02)
    assert spent([Release("counts", noise)], 1e-5) == pytest.approx(1.0, rel=2e-3)


def test_noise_reaches_the_epsilon_with_all_else_and_no_more() -> None:
    steps = Release("gradients", 1.0, rate=0.2, times=20)
    alone = with_noise_for(steps, 4.0, 1e-4)
    assert 0.99 * 4 < spent([alone], 1e-4) <= 4
    moments = Release("moments", 3.0)
    beside = with_noise_for(steps, 4.0, 1e-4, [moments])
    assert beside.noise > alone.noise and 0.99 * 4 < spent([beside, moments], 1e-4) <= 4


def test_an_epsilon_that_no_noise_reaches_is_refused() -> None:
    with pytest.raises(InputError, match=r"no noise on the gradients reaches 1 .* moments alone cost"):
        with_noise_for(Release("gradients", 1.0, 0.2, 20), 1.0, 1e-4, [Release("moments", 0.5)])
