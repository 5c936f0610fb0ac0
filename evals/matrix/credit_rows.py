"""The rows that the credit of a merged model needs: the public expert with each set of owners' experts.

A set is computed on the loaded model with `select_experts`, bit for bit as if only those experts had been merged. Its
row has the cache key that every row with the same experts has, so leave-one-out is measured once with `--opt-out`, and
an interrupted `--credit` goes on.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import compress
from statistics import fmean

from evals.credit.credit import Credit, OwnerSet
from evals.credit.game import Owners, all_sets, sampled_orders, sets_of
from evals.matrix.model_loader import Given
from evals.matrix.variants import Bench, Row, chosen_row
from evals.scoring.measure import Measurement
from evals.scoring.sliding_windows import TokenisedText

MOST_EXACT = 8  # owners for which all sets are measured: 256
SEED = 0  # of sampled orders

Found = Callable[[Row, TokenisedText], Measurement]


@dataclass(frozen=True)
class Game:
    """One merged model, and a row for each set of its owners that is needed."""

    model: str
    owners: list[str]
    orders: list[list[str]] | None
    rows: Mapping[Owners, Row]

    def credit(self, texts: Mapping[str, TokenisedText], found: Found) -> Credit:
        """The credit, once `found` knows every row on every text."""
        sets = [
            OwnerSet(
                [owner for owner in self.owners if owner in chosen],
                [found(row, text).bits_per_byte for text in texts.values()],
            )
            for chosen, row in self.rows.items()
        ]
        whole = self.rows[frozenset(self.owners)]
        by_domain = [_mass(found(whole, text)) for text in texts.values()]
        mass = [list(of_owner) for of_owner in zip(*by_domain, strict=True)]
        seed = None if self.orders is None else SEED
        return Credit(self.model, self.owners, list(texts), sets, mass, self.orders, seed)


def credit_games(given: Sequence[Given], bench: Bench, permutations: int) -> list[Game]:
    """One for each merged model.

    Args:
        given: the models.
        bench: what all rows of the table share.
        permutations: how many orders of joining are sampled if there are more owners than `MOST_EXACT`.
    """
    games = []
    for model in given:
        if model.experts is None:
            continue
        public, *owners = model.experts
        orders = sampled_orders(owners, permutations, SEED) if len(owners) > MOST_EXACT else None
        sets = all_sets(owners) if orders is None else sets_of(owners, orders)
        rows = {}
        for chosen in sets:
            experts = [public, *(owner for owner in owners if owner in chosen)]
            active = min(model.active or 1, len(experts))
            rows[chosen] = chosen_row(model, bench, f"{model.name}: {', '.join(experts)}", experts, active)
        games.append(Game(model.name, owners, orders, rows))
    return games


def _mass(found: Measurement) -> list[float]:
    """Router mass of each owner's expert, the mean over the layers that choose; the public expert is left out."""
    assert found.routing is not None, "a merged model has routers"
    chooses = found.routing.chooses
    return [fmean(compress(of_expert, chooses)) for of_expert in zip(*found.routing.mass, strict=True)][1:]
