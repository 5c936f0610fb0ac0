"""A credit with known figures, for tests of what is made of it."""

from __future__ import annotations

from evals.credit.credit import Credit, OwnerSet
from evals.credit.game import all_sets, sampled_orders, sets_of

OWNERS = ["math", "twin", "code", "loud"]
DOMAINS = ["public", "math", "code", "mixed/blended"]
MASS = [[0.0, 0.2, 0.1, 0.1], [0.0, 0.2, 0.1, 0.1], [0.0, 0.0, 0.2, 0.1], [0.1, 0.5, 0.5, 0.5]]


def twins(domains: list[str] = DOMAINS, model: str = "ours", permutations: int | None = None) -> Credit:
    """Two owners who save the same bits on math, one who saves bits on code, and one with mass who saves none."""
    orders = None if permutations is None else sampled_orders(OWNERS, permutations, 0)
    sets = []
    for chosen in all_sets(OWNERS) if orders is None else sets_of(OWNERS, orders):
        saved = {"math": 0.6 * bool(chosen & {"math", "twin"}), "code": 0.45 * ("code" in chosen)}
        sets.append(OwnerSet([o for o in OWNERS if o in chosen], [2.0 - saved.get(domain, 0.0) for domain in domains]))
    seed = None if orders is None else 0
    return Credit(model, OWNERS, domains, sets, [row[: len(domains)] for row in MASS], orders, seed)
