"""Results of several seeds of one study: every figure with its mean and spread."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean, stdev

from evals.credit.credit import Credit
from evals.matrix.results import DomainText, ModelRow, Results, Variant, badness, read_results
from evals.scoring.mixed_text import is_mixed
from flexo.errors import InputError


@dataclass(frozen=True)
class Spread:
    """A figure at each seed that has it, at least one."""

    values: tuple[float, ...]

    @property
    def mean(self) -> float:
        return fmean(self.values)

    @property
    def range(self) -> float:
        """The largest less the smallest."""
        return max(self.values) - min(self.values)

    @property
    def deviation(self) -> float | None:
        """Sample standard deviation, with n - 1; None for one seed."""
        return stdev(self.values) if len(self.values) > 1 and all(map(math.isfinite, self.values)) else None

    def text(self, show: Callable[[float], str]) -> str:
        """The mean, and for several seeds deviation and range: `1.950 ±0.003 (0.006)`."""
        return f"{show(self.mean)} {self.around(show)}".rstrip()

    def around(self, show: Callable[[float], str]) -> str:
        """Deviation and range alone; nothing for one seed."""
        if self.deviation is None:
            return ""
        return f"±{show(self.deviation).lstrip('+')} ({show(self.range).lstrip('+')})"


@dataclass(frozen=True)
class Seeds:
    """Results of one study, a file for each seed, measured on the same text."""

    results: list[Results]

    @property
    def domains(self) -> list[DomainText]:
        return self.results[0].domains

    @property
    def pure(self) -> list[str]:
        return self.results[0].pure

    @property
    def mixed(self) -> list[str]:
        return [domain.name for domain in self.domains if is_mixed(domain.name)]

    @property
    def columns(self) -> list[str]:
        """Pure domains, then mixed text."""
        return [*self.pure, *self.mixed]

    @property
    def models(self) -> list[ModelRow]:
        """All that some seed has, in the order in which they come first."""
        rows: dict[str, ModelRow] = {}
        for results in self.results:
            for model in results.models:
                rows.setdefault(model.name, model)
        return list(rows.values())

    @property
    def anchor(self) -> ModelRow | None:
        return next((model for model in self.models if model.kind == "anchor"), None)

    def variants(self, variant: Variant) -> dict[str, list[ModelRow]]:
        """The name of a merged row -> its variants of one kind."""
        found: dict[str, list[ModelRow]] = {}
        for model in self.models:
            if model.variant == variant and model.of is not None:
                found.setdefault(model.of, []).append(model)
        return found

    def credits(self) -> dict[str, list[Credit]]:
        """Name of a merged model -> its credit at each seed that has one with the owners of the first."""
        found: dict[str, list[Credit]] = {}
        for results in self.results:
            for credit in results.credits:
                others = found.setdefault(credit.model, [])
                if not others or others[0].owners == credit.owners:
                    others.append(credit)
        return found

    def over(self, model: str, figure: Callable[..., float | None], **more: str) -> Spread | None:
        """`figure(results, model, **more)` at all seeds that have the model; None if none has the figure."""
        values = [figure(results, model, **more) for results in self.having(model)]
        known = tuple(value for value in values if value is not None)
        return Spread(known) if known else None

    def having(self, model: str) -> list[Results]:
        return [results for results in self.results if any(row.name == model for row in results.models)]

    def bits(self, model: str, domain: str) -> Spread | None:
        return self.over(model, Results.bits, domain=domain)

    def change(self, model: str, domain: str) -> Spread | None:
        return self.over(model, Results.change, domain=domain)

    def mean(self, model: str) -> Spread | None:
        return self.over(model, Results.mean)

    def worst(self, model: str) -> tuple[str, Spread] | None:
        """The domain that is worst against the anchor in the mean over seeds."""
        changes = {domain: change for domain in self.pure if (change := self.change(model, domain))}
        return max(changes.items(), key=lambda pair: badness(pair[1].mean), default=None)


def read_seeds(paths: Sequence[Path]) -> Seeds:
    """Reads a study; raises `InputError` unless all files were measured on the same text."""
    results = [read_results(path) for path in paths]
    first = _text_of(results[0])
    for path, other in zip(paths, results, strict=True):
        if (text := _text_of(other)) != first:
            differs = sorted(dict(first ^ text))
            raise InputError(
                f"{path}: measured on other text than {paths[0]} ({', '.join(differs)} differ). Files of one report "
                "are seeds of one study: measure them on the same documents."
            )
    return Seeds(results)


def _text_of(results: Results) -> set[tuple[str, str]]:
    """Names and digests; mixed text is cut by tokens, so its digest may differ between tokenizers."""
    return {(domain.name, "" if is_mixed(domain.name) else domain.digest) for domain in results.domains}
