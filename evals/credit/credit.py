"""The credit of one merged model: what was measured with sets of its owners, and the figures that follow from it.

    (credit,) = evaluate(["model/"], Reading(corpora), extras=Extras(credit=True)).credits
    credit.shapley()["math"].value          bits per byte saved, mean over domains
    credit.shapley("code")["math"].value    ... on text about code
    credit.credit_share(), credit.mass_share()

A results file holds the measurements; the figures in it are for its readers and are computed anew when it is read.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from itertools import combinations
from statistics import fmean
from typing import Annotated, Any

from pydantic import Field

from evals.credit.game import (
    Estimate,
    Owners,
    all_sets,
    alone,
    exact_shapley,
    leave_one_out,
    leaving_orders,
    overlap,
    remaining,
    sampled_leaving_orders,
    sampled_shapley,
    sets_of,
)
from evals.scoring.mixed_text import is_mixed

Name = Annotated[str, Field(min_length=1, max_length=200)]
Figures = dict[str, float]  # of each owner


@dataclass(frozen=True)
class OwnerSet:
    """Some owners, and what the model measures with their experts and the public one alone."""

    owners: list[Name]
    bits: list[float]  # bits per byte of each domain


@dataclass(frozen=True)
class Credit:
    """Measurements of one merged model with sets of its owners. O owners, D domains."""

    model: Name
    owners: list[Name]  # in the order of the model's experts, public left out
    domains: list[Name]
    sets: list[OwnerSet]  # all 2^O, or those that `orders` need
    mass: list[list[float]]  # [O][D] router mass with all experts there, mean over the layers that choose
    orders: list[list[Name]] | None = None  # sampled orders of joining, each before its reverse; None: all sets
    seed: int | None = None  # of the orders
    _bits: dict[Owners, list[float]] = field(init=False, repr=False, compare=False, default_factory=dict)

    def __post_init__(self) -> None:
        if len(set(self.owners)) != len(self.owners) or not self.owners or len(set(self.domains)) != len(self.domains):
            raise ValueError("credit needs owners and domains, each named once")
        if self.orders is not None and not (self.orders and len(self.orders) % 2 == 0):
            raise ValueError("credit with an odd number of orders, or none")
        if any(sorted(order) != sorted(self.owners) for order in self.orders or ()):
            raise ValueError("credit with an order of joining that does not hold every owner once")
        if self.orders is None and len(self.sets) != 2 ** len(self.owners):
            raise ValueError("credit without one measurement for each set of owners")
        wanted = all_sets(self.owners) if self.orders is None else sets_of(self.owners, self.orders)
        self._bits.update({frozenset(chosen.owners): chosen.bits for chosen in self.sets})
        if self._bits.keys() != set(wanted) or len(self.sets) != len(wanted):
            raise ValueError("credit without one measurement for each set of owners that it needs")
        rows = [*(chosen.bits for chosen in self.sets), *self.mass]
        if len(self.mass) != len(self.owners) or any(len(row) != len(self.domains) for row in rows):
            raise ValueError("credit whose tables do not fit its owners and domains")

    @property
    def pure(self) -> list[str]:
        """The domains that count in a mean: all but mixed text."""
        return [domain for domain in self.domains if not is_mixed(domain)]

    def bits(self, owners: Owners, domain: str | None = None) -> float:
        """Bits per byte with these owners' experts and the public one; the mean over pure domains for None."""
        row = dict(zip(self.domains, self._bits[owners], strict=True))
        return fmean(row[name] for name in self.pure) if domain is None else row[domain]

    def values(self, domain: str | None = None) -> dict[Owners, float]:
        """Bits per byte that each measured set of owners saves against the public expert alone."""
        base = self.bits(frozenset(), domain)
        return {owners: base - self.bits(owners, domain) for owners in self._bits}

    def saved(self, domain: str | None = None) -> float:
        """Bits per byte that all owners together save."""
        return self.values(domain)[frozenset(self.owners)]

    def shapley(self, domain: str | None = None) -> dict[str, Estimate]:
        values = self.values(domain)
        return exact_shapley(self.owners, values) if self.orders is None else sampled_shapley(self.orders, values)

    def alone(self, domain: str | None = None) -> Figures:
        return alone(self.owners, self.values(domain))

    def leave_one_out(self, domain: str | None = None) -> Figures:
        return leave_one_out(self.owners, self.values(domain))

    def credit_share(self) -> Figures | None:
        """Each owner's Shapley value as a share of all bits saved, below 0 for harm; None if nothing is saved."""
        saved = self.saved()
        return {owner: found.value / saved for owner, found in self.shapley().items()} if saved > 0 else None

    def mass_share(self) -> Figures:
        """Each owner's router mass as a share of that of all owners, over the pure domains; the public expert's is left
        out."""
        where = [self.domains.index(domain) for domain in self.pure]
        mass = {owner: fmean(row[n] for n in where) for owner, row in zip(self.owners, self.mass, strict=True)}
        whole = sum(mass.values())
        return {owner: value / whole if whole > 0 else 0.0 for owner, value in mass.items()}

    def overlaps(self) -> dict[tuple[str, str], float]:
        """How far two owners replace each other, see `game.overlap`; pairs that were measured."""
        values = self.values()
        pairs = [pair for pair in combinations(self.owners, 2) if frozenset(pair) in values]
        found = {pair: overlap(*pair, values) for pair in pairs}
        return {pair: share for pair, share in found.items() if share is not None}

    def leaving(self) -> dict[str, list[str]]:
        """`best` and `worst` order in which owners can leave, over the mean of the domains."""
        if self.orders is None:
            found = leaving_orders(self.owners, self.values())
        else:
            found = sampled_leaving_orders(self.orders, self.values())
        return dict(zip(("best", "worst"), found, strict=True))

    def curve(self, order: list[str], domain: str | None = None) -> list[float]:
        """Bits per byte with all owners, and after each one has left, to the public expert alone; O + 1 figures."""
        return [self.bits(owners, domain) for owners in remaining(order)]

    def to_dict(self) -> dict[str, Any]:
        """The measurements, and under `figures` what follows from them, which `without_figures` leaves out."""
        plain = {name: value for name, value in asdict(self).items() if name != "_bits"}
        return plain | {"figures": self.figures()}

    def figures(self) -> dict[str, Any]:
        """All derived figures, for JSON."""
        columns: list[str | None] = [None, *self.domains]
        ways: Mapping[str, Callable[[str | None], Mapping[str, Any]]] = {
            "shapley": lambda domain: {owner: asdict(found) for owner, found in self.shapley(domain).items()},
            "leave_one_out": self.leave_one_out,
            "alone": self.alone,
        }
        found: dict[str, Any] = {
            name: {domain or "mean": dict(way(domain)) for domain in columns} for name, way in ways.items()
        }
        leaving = {name: {"order": order, "bits_per_byte": self.curve(order)} for name, order in self.leaving().items()}
        overlaps = [{"owners": list(pair), "overlap": share} for pair, share in self.overlaps().items()]
        shares = {"credit_share": self.credit_share(), "mass_share": self.mass_share()}
        return {"saved": {domain or "mean": self.saved(domain) for domain in columns}} | found | shares | {
            "overlaps": overlaps, "leaving": leaving
        }  # fmt: skip


def without_figures(value: object) -> object:
    """The value of a file without the derived figures, which are computed anew."""
    return {name: part for name, part in value.items() if name != "figures"} if isinstance(value, dict) else value
