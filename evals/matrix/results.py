"""Results: every model on every domain, one file for one seed; `flexo-eval --json` writes, `flexo-report` reads it.

docs/evaluation.md describes each field. The file is checked when it is read, for it may come from elsewhere.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from itertools import compress
from pathlib import Path
from statistics import fmean
from typing import Annotated, Any, ClassVar, Literal

from pydantic import BeforeValidator, Field, TypeAdapter, ValidationError

from evals.credit.credit import Credit, without_figures
from evals.scoring.measure import Measurement
from evals.scoring.mixed_text import is_mixed
from evals.scoring.router_stats import Routing
from flexo.errors import InputError
from merge.tensor_io.json_file import read_json

FORMAT: Literal["flexo.results"] = "flexo.results"
VERSION: Literal[2] = 2  # files of version 1 are read, too: they call `active_share` `share`

Kind = Literal["anchor", "dense", "pair", "merged", "ensemble", "classifier"]
Variant = Literal["active", "opt-out", "growing"]
Name = Annotated[str, Field(min_length=1, max_length=200)]
ReadCredit = Annotated[Credit, BeforeValidator(without_figures)]


@dataclass(frozen=True)
class DomainText:
    """How much text of a domain was scored; the digest is over its documents."""

    name: Name
    documents: int
    bytes: int
    tokens: int
    digest: str


@dataclass(frozen=True)
class ModelRow:
    """A model as it was measured."""

    name: Name
    kind: Kind
    of: str | None = None  # the merged row that it is a variant of
    variant: Variant | None = None
    experts: list[str] | None = None  # those that its routers choose among
    active: int | None = None  # of them for a token

    @property
    def label(self) -> str:
        """For a table: how many experts are active is said where the name does not."""
        plain = self.kind == "merged" and self.variant is None and self.active is not None and self.experts
        return f"{self.name}, top-{self.active} of {len(self.experts or ())}" if plain else self.name


@dataclass(frozen=True)
class CellRouting:
    """Routing of a domain's text: tables are [layer][expert], lists [layer]; from 0 to 1, but entropy in bits."""

    experts: list[Name]
    mass: list[list[float]]  # mean probability of each expert, before the top experts are chosen
    entropy: list[float]  # of a token's probabilities, mean over tokens
    active_share: list[list[float]]  # share of the places for active experts that the expert fills
    heaviest: list[list[float]]  # share of tokens for which the expert has the most mass
    own: list[float] | None  # mass on the expert of each token's domain; None if that domain has no expert
    agreement: float | None  # share of tokens whose heaviest expert, over the layers that choose, is their domain's
    chooses: list[bool] | None = None  # [layer] whether its experts differ; None: they differ in every layer

    def __post_init__(self) -> None:
        tables = (self.mass, self.active_share, self.heaviest)
        rows = [row for table in tables for row in table]
        if any(len(table) != len(self.entropy) for table in tables) or not self.entropy:
            raise ValueError("routing tables of different numbers of layers")
        if self.chooses is not None and (len(self.chooses) != len(self.entropy) or not any(self.chooses)):
            raise ValueError("routing tables in which no layer chooses, or not one value of `chooses` for each layer")
        if any(len(row) != len(self.experts) for row in rows) or len(self.own or self.entropy) != len(self.entropy):
            raise ValueError("routing tables that do not fit the experts")

    @property
    def own_mass(self) -> float | None:
        """In-domain router mass, the mean over the layers that choose."""
        return None if self.own is None else fmean(compress(self.own, self.chooses or [True] * len(self.own)))

    @classmethod
    def of(cls, routing: Routing) -> CellRouting:
        active_share = [[active / sum(row) for active in row] for row in routing.active]
        return cls(
            list(routing.experts), routing.mass, routing.entropy, active_share, routing.heaviest, routing.own,
            routing.agreement_overall, routing.chooses,
        )  # fmt: skip


@dataclass(frozen=True)
class Cell:
    """One model on one domain."""

    model: str
    domain: str
    bits_per_byte: float
    accuracy: float
    passes: float = 1.0  # models run for a token
    routing: CellRouting | None = None

    @classmethod
    def of(cls, model: str, domain: str, found: Measurement) -> Cell:
        routing = None if found.routing is None else CellRouting.of(found.routing)
        return cls(model, domain, found.bits_per_byte, found.accuracy, found.passes, routing)


@dataclass(frozen=True)
class Results:
    """The content of a results file."""

    __pydantic_config__: ClassVar[dict[str, str]] = {"extra": "forbid"}
    seed: int | None
    split: str
    max_bytes: int | None
    software: dict[str, str]
    domains: list[DomainText]
    models: list[ModelRow]
    cells: list[Cell]
    credits: list[ReadCredit] = field(default_factory=list)  # of merged models
    format: Literal["flexo.results"] = FORMAT
    version: Literal[2] = VERSION
    _cells: dict[tuple[str, str], Cell] = field(init=False, repr=False, compare=False, default_factory=dict)

    def __post_init__(self) -> None:
        models, domains = [model.name for model in self.models], [domain.name for domain in self.domains]
        for what, names in (("model", models), ("domain", domains)):
            if len(set(names)) != len(names) or not names:
                raise ValueError(f"{what}s without names of their own: {', '.join(names) or 'none'}")
        self._cells.update({(cell.model, cell.domain): cell for cell in self.cells})
        if self._cells.keys() != {(model, domain) for model in models for domain in domains} or len(self.cells) != len(
            self._cells
        ):
            raise ValueError("not one cell for every model on every domain")
        if len({credit.model for credit in self.credits}) != len(self.credits):
            raise ValueError("two credits of one model")
        if any(credit.model not in models or credit.domains != domains for credit in self.credits):
            raise ValueError("a credit of no model here, or of other domains")

    def credit(self, model: str) -> Credit | None:
        return next((credit for credit in self.credits if credit.model == model), None)

    def cell(self, model: str, domain: str) -> Cell:
        return self._cells[model, domain]

    def bits(self, model: str, domain: str) -> float:
        return self.cell(model, domain).bits_per_byte

    @property
    def pure(self) -> list[str]:
        """The domains that count in a mean: all but mixed text."""
        return [domain.name for domain in self.domains if not is_mixed(domain.name)]

    @property
    def anchor(self) -> ModelRow | None:
        return next((model for model in self.models if model.kind == "anchor"), None)

    def mean(self, model: str) -> float:
        """Mean bits per byte over the pure domains, each counting the same."""
        return sum(self.bits(model, domain) for domain in self.pure) / len(self.pure)

    def change(self, model: str, domain: str | None = None, other: str | None = None) -> float | None:
        """Bits per byte against another model's, as a share of them: above 0 is worse.

        Args:
            model: the model that is compared.
            domain: None compares the means over domains.
            other: the model that it is compared with; None: the anchor.

        Returns:
            The change, or None if there is no such other model.
        """
        other = self.anchor.name if other is None and self.anchor else other
        if other is None or not any(row.name == other for row in self.models):
            return None
        own, base = (self.mean(name) if domain is None else self.bits(name, domain) for name in (model, other))
        return own / base - 1 if base else math.nan

    def worst(self, model: str) -> tuple[str, float] | None:
        """The domain on which a model is worst against the public anchor, and by how much."""
        changes = [(domain, change) for domain in self.pure if (change := self.change(model, domain)) is not None]
        return max(changes, key=lambda pair: badness(pair[1]), default=None)

    def own_mass(self, model: str) -> float | None:
        """In-domain router mass, mean over the layers that choose and over the pure domains that have an expert."""
        routings = [routing for domain in self.pure if (routing := self.cell(model, domain).routing)]
        masses = [mass for routing in routings if (mass := routing.own_mass) is not None]
        return fmean(masses) if masses else None

    def to_dict(self) -> dict[str, Any]:
        head = {"format": self.format, "version": self.version}
        plain = {name: value for name, value in asdict(self).items() if name != "_cells"}
        return head | plain | {"credits": [credit.to_dict() for credit in self.credits]}


READ = TypeAdapter(Results)


def badness(change: float) -> float:
    """A change as a sort key: NaN is worse than every number."""
    return math.inf if math.isnan(change) else change


def read_results(path: Path) -> Results:
    """A file of results; raises `InputError` unless it is one, whole and in order."""
    value = read_json(path)
    if value.get("format") != FORMAT or value.get("version") not in (1, VERSION):
        raise InputError(
            f"{path}: expected results of flexo-eval, version 1 or {VERSION}, got format {value.get('format')!r}, "
            f"version {value.get('version')!r}. Write them with flexo-eval --json."
        )
    try:
        return READ.validate_python(value if value["version"] == VERSION else _from_version_1(value))
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"])) or "the file"
        raise InputError(f"{path}: {where}: {first['msg']}. Was it edited? Write it anew with flexo-eval.") from None


def _from_version_1(value: dict[str, Any]) -> dict[str, Any]:
    """The value of a version 1 file as version 2 has it; mistakes in it are left for the validation."""
    cells = value.get("cells")
    for cell in cells if isinstance(cells, list) else ():
        routing = cell.get("routing") if isinstance(cell, dict) else None
        if isinstance(routing, dict) and "share" in routing:
            routing["active_share"] = routing.pop("share")
    return value | {"version": VERSION}


def markdown(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table with padded cells, so that it reads well as plain text."""
    table = [[cell.replace("|", "\\|") for cell in row] for row in (header, *rows)]
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    lines = [
        "| " + " | ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) + " |" for row in table
    ]
    return "\n".join([lines[0], "|" + "|".join("-" * (width + 2) for width in widths) + "|", *lines[1:]]) + "\n"


def matrix_table(results: Results) -> str:
    """Bits per byte of every model on every domain as a Markdown table."""
    pure = results.pure
    mixed = [domain.name for domain in results.domains if is_mixed(domain.name)]
    header = ["bits per byte", *pure, "mean", *mixed, *(["worst against anchor"] if results.anchor else [])]
    rows = []
    for model in results.models:
        cells = {domain: f"{results.bits(model.name, domain):.3f}" for domain in (*pure, *mixed)}
        row = [model.label, *(cells[d] for d in pure), f"{results.mean(model.name):.3f}", *(cells[d] for d in mixed)]
        if worst := results.worst(model.name):
            row.append(f"{worst[1]:+.1%} {worst[0]}" if model.kind != "anchor" else "")
        rows.append(row)
    return markdown(header, rows)
