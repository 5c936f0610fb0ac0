"""Sharing a value among owners: Shapley values, leave-one-out, and the curve of leaving. No model is run here.

`values` maps a set of owners to its value, here the bits per byte that their experts save: `v(S)` is the bits per byte
with the public expert alone, less those with the public expert and the experts of S. So `v(nobody) = 0`.

    alone           v({i})                                the value if i is the only owner
    leave-one-out   v(all) - v(all but i)                 the value that is lost if i leaves
    Shapley         the mean over all orders in which owners can join of v(before and i) - v(before)
                    (L. S. Shapley, A value for n-person games, 1953); the values of all owners add up to v(all)

With few owners all sets are measured, and Shapley values are exact. With many, orders are sampled (Castro, Gomez and
Tejada, 2009), each together with its reverse, which lowers the variance (Mitchell et al., JMLR 23, 2022); an interval
comes with the estimate.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from random import Random
from statistics import NormalDist, fmean, stdev

Owners = frozenset[str]
Values = Mapping[Owners, float]
Order = Sequence[str]  # owners, the first to join first

CONFIDENCE = 0.95


@dataclass(frozen=True)
class Estimate:
    """A Shapley value, and half the width of its 95 % confidence interval; None if the value is exact."""

    value: float
    around: float | None = None


def all_sets(owners: Order) -> list[Owners]:
    """The 2^n sets of owners, small ones first."""
    return [frozenset(chosen) for size in range(len(owners) + 1) for chosen in combinations(owners, size)]


def sets_of(owners: Order, orders: Iterable[Order]) -> list[Owners]:
    """The sets that sampled orders need, and those of `alone` and `leave_one_out`, each once, small ones first."""
    everyone = frozenset(owners)
    found = {frozenset(order[:size]) for order in orders for size in range(len(order) + 1)}
    found |= {frozenset(), everyone}
    found |= {frozenset([owner]) for owner in owners} | {everyone - {owner} for owner in owners}
    place = {owner: n for n, owner in enumerate(owners)}
    return sorted(found, key=lambda chosen: (len(chosen), sorted(place[owner] for owner in chosen)))


def sampled_orders(owners: Order, count: int, seed: int) -> list[list[str]]:
    """`count` random orders of joining, rounded up to an even number: every second one is the reverse of that before.

    More orders of one seed begin with those of fewer, so that a longer run finds what a shorter one measured.
    """
    dice = Random(f"orders of joining {seed}")
    orders: list[list[str]] = []
    while len(orders) < count:
        order = list(owners)
        dice.shuffle(order)
        orders += [order, order[::-1]]
    return orders


def alone(owners: Order, values: Values) -> dict[str, float]:
    return {owner: values[frozenset([owner])] - values[frozenset()] for owner in owners}


def leave_one_out(owners: Order, values: Values) -> dict[str, float]:
    everyone = frozenset(owners)
    return {owner: values[everyone] - values[everyone - {owner}] for owner in owners}


def exact_shapley(owners: Order, values: Values) -> dict[str, Estimate]:
    """Shapley values from the values of all sets."""
    count = len(owners)
    weight = [1 / (count * math.comb(count - 1, size)) for size in range(count)]  # size!(n-1-size)!/n!
    found = {}
    for owner in owners:
        without = (chosen for chosen in values if owner not in chosen)
        terms = (weight[len(chosen)] * (values[chosen | {owner}] - values[chosen]) for chosen in without)
        found[owner] = Estimate(math.fsum(terms))
    return found


def sampled_shapley(orders: Sequence[Order], values: Values) -> dict[str, Estimate]:
    """Shapley values estimated from `sampled_orders`; intervals are Student's t over pairs of an order and its reverse.

    A single pair gives no interval.
    """
    gains = [_gains(order, values) for order in orders]
    pairs = [(one, other) for one, other in zip(gains[::2], gains[1::2], strict=True)]
    found = {}
    for owner in orders[0]:
        samples = [(one[owner] + other[owner]) / 2 for one, other in pairs]
        error = stdev(samples) / len(samples) ** 0.5 if len(samples) > 1 else None
        found[owner] = Estimate(fmean(samples), None if error is None else student_t(len(samples) - 1) * error)
    return found


def overlap(one: str, other: str, values: Values) -> float | None:
    """The share of the smaller of two owners' values alone that is lost when both are there.

    1 for twins, whose experts save the same bits; 0 if both values add up; below 0 if they help each other. None if the
    smaller value is below a hundredth of the larger: that owner saves next to nothing that could be lost.
    """
    nobody = values[frozenset()]
    a, b, both = (values[frozenset(chosen)] - nobody for chosen in ([one], [other], [one, other]))
    return (a + b - both) / min(a, b) if min(a, b) > max(a, b) / 100 else None


def leaving_orders(owners: Order, values: Values) -> tuple[list[str], list[str]]:
    """The best and the worst order of leaving: the mean value over all numbers of remaining owners is highest, lowest.

    `values` are those of all sets. Exact, over all orders: the best order of a set is that of one of its owners leaving
    first and the best order of the rest, so sets are worked through by size.
    """
    found = []
    for sign in (1, -1):
        best: dict[Owners, tuple[float, list[str]]] = {frozenset(): (0.0, [])}
        for chosen in all_sets(owners)[1:]:
            candidates = [(best[chosen - {owner}], owner) for owner in owners if owner in chosen]
            (total, rest), first = max(candidates, key=lambda candidate: candidate[0][0])
            best[chosen] = total + sign * values[chosen], [first, *rest]
        found.append(best[frozenset(owners)][1])
    return found[0], found[1]


def sampled_leaving_orders(orders: Sequence[Order], values: Values) -> tuple[list[str], list[str]]:
    """The best and the worst of the sampled orders, backwards; as `leaving_orders`, but over those alone."""

    def total(order: Order) -> float:
        return sum(values[frozenset(order[:size])] for size in range(len(order) + 1))

    best, worst = max(orders, key=total), min(orders, key=total)
    return list(best)[::-1], list(worst)[::-1]


def remaining(order: Order) -> list[Owners]:
    """The owners that are left while they leave in this order: all of them, all but the first, ... nobody."""
    return [frozenset(order[gone:]) for gone in range(len(order) + 1)]


def student_t(freedom: int) -> float:
    """The two-sided 95 % quantile of Student's t with so many degrees of freedom.

    By the Cornish-Fisher expansion about the normal quantile (Abramowitz and Stegun 26.7.5), within 0.5 % from three
    degrees on; one and two have closed forms.
    """
    p = 0.5 + CONFIDENCE / 2
    if freedom == 1:
        return math.tan(math.pi * (p - 0.5))
    if freedom == 2:
        return (2 * p - 1) * math.sqrt(2 / (4 * p * (1 - p)))
    z, n = NormalDist().inv_cdf(p), freedom
    found: float = (
        z
        + (z**3 + z) / (4 * n)
        + (5 * z**5 + 16 * z**3 + 3 * z) / (96 * n**2)
        + (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / (384 * n**3)
        + (79 * z**9 + 776 * z**7 + 1482 * z**5 - 1920 * z**3 - 945 * z) / (92160 * n**4)
    )
    return found


def _gains(order: Order, values: Values) -> dict[str, float]:
    """What each owner adds when they join in this order."""
    sets = [frozenset(order[:size]) for size in range(len(order) + 1)]
    return {owner: values[after] - values[before] for owner, before, after in zip(order, sets, sets[1:], strict=False)}
