"""AUC, true positives and the bound of the one-run audit, against definitions and numbers derived by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest

from evals.privacy.statistics.detection import auc, bootstrap, found_at, share
from evals.privacy.statistics.one_run_audit import audit, lower_bound, p_value


def test_auc_is_the_chance_that_a_member_scores_higher() -> None:
    rng = np.random.default_rng(0)
    member_N, other_M = rng.integers(0, 6, 40).astype(float), rng.integers(0, 5, 30).astype(float)
    pairs = [(a > b) + (a == b) / 2 for a in member_N for b in other_M]
    assert auc(member_N, other_M) == pytest.approx(sum(pairs) / len(pairs))
    found = bootstrap(auc, member_N, other_M)
    assert found.low < found.value < found.high and bootstrap(auc, member_N, other_M) == found


def test_true_positives_are_those_above_enough_non_members() -> None:
    others = np.arange(100.0)
    members = np.array([97.5, 98.5, 99.5, 3.0])
    assert found_at(0.01)(members, others) == 2 / 4  # one of a hundred may pass: 99 does, 98 does not
    assert found_at(0.001)(members, others) == 1 / 4  # none may
    assert found_at(0.02)(members, np.full(100, 97.5)) == 2 / 4  # ties with the threshold are not found


def test_a_share_of_nothing_found_is_not_known_to_be_nothing() -> None:
    found = share(np.zeros(100, bool))
    assert found.value == found.low == 0 and found.high == pytest.approx(1.96**2 / (100 + 1.96**2), rel=1e-3)


def test_the_bound_without_delta_is_that_of_randomised_response() -> None:
    """All of r guesses right has the chance q^r, so q > p^(1/r) is what cannot be refuted."""
    for guesses in (1, 20, 100):
        q = 0.05 ** (1 / guesses)
        expected = max(0.0, math.log(q / (1 - q)))
        assert lower_bound(1000, guesses, guesses, 0.0, 0.05) == pytest.approx(expected, abs=2e-4)
    assert lower_bound(100, 100, 50, 0.0, 0.05) == 0  # half right is what blind guessing gives
    assert p_value(100, 3, 2, 0.0, 0.0) == pytest.approx(4 / 8)


def test_delta_adds_to_the_chance_of_being_right() -> None:
    """With one guess about one canary, f(1) = q and f(0) = 1."""
    q = 1 / (1 + math.exp(-1.5))
    assert p_value(1, 1, 1, 1.5, 0.01) == pytest.approx(q + 2 * 0.01 * (1 - q))
    tail = [sum(math.comb(3, k) * q**k * (1 - q) ** (3 - k) for k in range(v, 4)) for v in range(4)]
    steepest = max((tail[2 - i] - tail[2]) / i for i in (1, 2))
    assert p_value(50, 3, 2, 1.5, 1e-4) == pytest.approx(tail[2] + 2 * 50 * 1e-4 * steepest)
    assert lower_bound(1000, 100, 95, 1e-5, 0.05) < lower_bound(1000, 100, 95, 0.0, 0.05)


def test_the_bound_on_randomised_response_is_below_its_epsilon_and_near_it() -> None:
    """Randomised response with epsilon 2 is as leaky as epsilon 2 allows; 95 % of bounds must be below it."""
    rng, epsilon = np.random.default_rng(1), 2.0
    found = []
    for _ in range(60):
        is_in_M = rng.random(1000) < 0.5
        told_M = np.where(rng.random(1000) < 1 / (1 + math.exp(-epsilon)), is_in_M, ~is_in_M)
        found.append(audit(told_M + 1e-3 * rng.random(1000), is_in_M, 0.0).epsilon)
    assert np.mean(np.array(found) > epsilon) <= 0.05 and np.mean(found) > 1.5


def test_scores_that_say_nothing_prove_nothing() -> None:
    rng = np.random.default_rng(2)
    assert audit(rng.normal(size=500), rng.random(500) < 0.5, 1e-5).epsilon == 0
