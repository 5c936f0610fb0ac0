"""Epsilon and noise, against what is known without our code."""

from __future__ import annotations

import math

import pytest

pytest.importorskip("dp_accounting", reason="the extra privacy is not installed")

from flexo.errors import InputError
from trainers.privacy.accounting import COARSE, Release, gaussian_noise_for


def gaussian_delta(epsilon: float, noise: float) -> float:
    """Of one Gaussian mechanism (Balle and Wang 2018, arXiv 1805.06530, theorem 8)."""

    def below(x: float) -> float:
        return 0.5 * math.erfc(-x / 2**0.5)

    a, b = 1 / (2 * noise), epsilon * noise
    return below(a - b) - math.exp(epsilon) * below(-a - b)


def test_one_gaussian_is_what_the_formula_says() -> None:
    noise = gaussian_noise_for(1.0, 1e-5)
    assert gaussian_delta(1.0, noise) == pytest.approx(1e-5, rel=0.02)
    assert Release(1, 1.0).epsilon(noise, 1e-5) == pytest.approx(1.0, rel=2e-3)


def test_noise_reaches_the_epsilon_and_no_more() -> None:
    release = Release(steps=20, rate=0.2)
    noise = release.noise_for(4.0, 1e-4)
    assert 0.99 * 4 < release.epsilon(noise, 1e-4) <= 4
    assert Release(20, 0.2, moments_noise=3.0).noise_for(4.0, 1e-4) > noise


def test_moments_that_cost_more_than_all_are_refused() -> None:
    with pytest.raises(InputError, match="moments alone cost more"):
        Release(20, 0.2, moments_noise=0.5).noise_for(1.0, 1e-4)
    assert Release(0, 1.0, 0.5).epsilon(0.0, 1e-4, COARSE) > 1
