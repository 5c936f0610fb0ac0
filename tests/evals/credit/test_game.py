"""Shapley values against their definition, on games whose answers are known, and what sampling does to them."""

from __future__ import annotations

from itertools import permutations
from random import Random
from statistics import fmean

import pytest

from evals.credit.game import (
    Owners,
    all_sets,
    alone,
    exact_shapley,
    leave_one_out,
    leaving_orders,
    overlap,
    remaining,
    sampled_leaving_orders,
    sampled_orders,
    sampled_shapley,
    sets_of,
    student_t,
)

OWNERS = ["a", "b", "c", "d"]


def random_game(owners: list[str], seed: int) -> dict[Owners, float]:
    dice = Random(seed)
    return {chosen: dice.random() if chosen else 0.0 for chosen in all_sets(owners)}


def by_definition(owners: list[str], values: dict[Owners, float]) -> dict[str, float]:
    gains: dict[str, list[float]] = {owner: [] for owner in owners}
    for order in permutations(owners):
        for n, owner in enumerate(order):
            gains[owner].append(values[frozenset(order[: n + 1])] - values[frozenset(order[:n])])
    return {owner: fmean(found) for owner, found in gains.items()}


@pytest.mark.parametrize("seed", range(5))
def test_exact_values_are_the_mean_over_all_orders(seed: int) -> None:
    values = random_game(OWNERS, seed)
    found = exact_shapley(OWNERS, values)
    assert {owner: one.value for owner, one in found.items()} == pytest.approx(by_definition(OWNERS, values))
    assert sum(one.value for one in found.values()) == pytest.approx(values[frozenset(OWNERS)])
    assert all(one.around is None for one in found.values())


def test_twins_halve_what_one_of_them_saves_and_leave_one_out_gives_them_nothing() -> None:
    """a and its twin save the same bits, b others, and `loud` none."""
    owners = ["a", "twin", "b", "loud"]
    values = {chosen: 0.2 * bool(chosen & {"a", "twin"}) + 0.1 * ("b" in chosen) for chosen in all_sets(owners)}
    found = {owner: one.value for owner, one in exact_shapley(owners, values).items()}
    assert found == pytest.approx({"a": 0.1, "twin": 0.1, "b": 0.1, "loud": 0.0})
    assert leave_one_out(owners, values) == pytest.approx({"a": 0.0, "twin": 0.0, "b": 0.1, "loud": 0.0})
    assert alone(owners, values) == pytest.approx({"a": 0.2, "twin": 0.2, "b": 0.1, "loud": 0.0})
    assert overlap("a", "twin", values) == pytest.approx(1) and overlap("a", "b", values) == pytest.approx(0)
    assert overlap("a", "loud", values) is None
    drowned = {chosen: (0.2 + 1e-6 * ("loud" in chosen)) * (chosen == {"a"}) for chosen in all_sets(["a", "loud"])}
    assert overlap("a", "loud", drowned) is None, "whose value alone is no more than noise"


def test_sampling_all_orders_gives_the_exact_values() -> None:
    values = random_game(OWNERS[:3], 7)
    orders = [order for half in permutations(OWNERS[:3]) for order in (half, half[::-1])]
    found = sampled_shapley(orders, values)
    exact = exact_shapley(OWNERS[:3], values)
    assert {o: one.value for o, one in found.items()} == pytest.approx({o: one.value for o, one in exact.items()})


def test_intervals_hold_the_truth_about_as_often_as_they_say() -> None:
    owners = [f"owner {n}" for n in range(9)]
    values = random_game(owners, 1)
    exact = exact_shapley(owners, values)
    held = []
    for seed in range(60):
        orders = sampled_orders(owners, 16, seed)
        assert set(sets_of(owners, orders)) <= values.keys()
        found = sampled_shapley(orders, values)
        assert sum(one.value for one in found.values()) == pytest.approx(values[frozenset(owners)])
        for owner, one in found.items():
            assert one.around is not None and one.around > 0
            held.append(abs(one.value - exact[owner].value) <= one.around)
    assert 0.92 < fmean(held) < 0.98
    assert all(one.around is None for one in sampled_shapley(sampled_orders(owners, 2, 0), values).values())


def test_more_orders_begin_with_those_of_fewer_and_each_comes_with_its_reverse() -> None:
    orders = sampled_orders(OWNERS, 7, 3)
    assert len(orders) == 8 and sampled_orders(OWNERS, 3, 3) == orders[:4] and sampled_orders(OWNERS, 8, 4) != orders
    assert all(one == other[::-1] for one, other in zip(orders[::2], orders[1::2], strict=True))
    needed = sets_of(OWNERS, orders[:2])
    assert needed[0] == frozenset() and needed[-1] == frozenset(OWNERS) and len(needed) == len(set(needed))
    assert {frozenset([owner]) for owner in OWNERS} | {frozenset(OWNERS) - {owner} for owner in OWNERS} <= {*needed}


@pytest.mark.parametrize("seed", range(4))
def test_the_orders_of_leaving_are_the_best_and_the_worst_of_all(seed: int) -> None:
    values = random_game(OWNERS, seed)
    totals = {order: sum(values[left] for left in remaining(order)) for order in permutations(OWNERS)}
    best, worst = leaving_orders(OWNERS, values)
    assert totals[tuple(best)] == pytest.approx(max(totals.values()))
    assert totals[tuple(worst)] == pytest.approx(min(totals.values()))
    joining = [order[::-1] for order in totals]
    assert sampled_leaving_orders(joining, values) == (best, worst)
    assert remaining(best)[0] == frozenset(OWNERS) and remaining(best)[-1] == frozenset()


@pytest.mark.parametrize(
    ("freedom", "quantile"), [(1, 12.7062), (2, 4.30265), (3, 3.18245), (7, 2.36462), (15, 2.13145), (100, 1.98397)]
)
def test_quantiles_are_those_of_the_table(freedom: int, quantile: float) -> None:
    assert student_t(freedom) == pytest.approx(quantile, rel=2e-3)
