"""What every part of `flexo-leak` is: a name, what it needs, and a function from the models and texts to figures.

PART = Part("membership", ("--source",), run)        # in its module, and in the list of `evals.privacy.leak`

def run(context: Context) -> list[Row]: ...
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from evals.matrix.measurement_cache import Store
from evals.matrix.model_loader import Given
from evals.privacy.attacks.documents import Sample
from evals.privacy.attacks.targets import Target
from evals.privacy.attacks.token_scores import Scores
from flexmix.canaries.manifest import Manifest

Need = Literal["--source", "--canaries", "an expert file", "a merged folder", "--domains", "--never"]  # how it is given


@dataclass(frozen=True)
class Row:
    """A figure, with its interval and the same figure of the reference, where there are such."""

    part: str
    figure: str  # what was measured: `AUC, loss less the anchor's`
    value: float
    low: float | None = None  # see `Part.interval`
    high: float | None = None
    reference: float | None = None  # see `Part.reference`: what is over it is what the model gives away
    group: str = "all"  # of documents, secrets or experts: `4 in the text`
    warning: str = ""  # what is wrong with the figures of this part, if something is


@dataclass(frozen=True)
class Settings:
    """How attacks are run."""

    seed: int = 0  # of samples, resamples and what is drawn
    cache: Path | None = None  # a folder: what models say is kept there, and a stopped command goes on
    others: int = 255  # secrets that could have been drawn, among which each planted one is ranked
    delta: float | None = None  # of the guarantee that an audit tests; None: that of the file, or 1e-5
    dtype: str = "auto"  # as in `load_model`
    device: str = "auto"


@dataclass(frozen=True)
class Extra:
    """What an attacker may have besides the model and the owner's text, and what the model is compared with."""

    domains: Path | None = None  # a folder with one corpus folder a domain
    max_bytes: int = 100_000  # of the text of each
    never: Path | None = None  # a model that was merged without some of the experts
    embedding: Path | None = None  # of the owner's text, by flexo-embed
    proxies: Path | None = None  # the public documents that look like it, by flexo-data proxies


@dataclass(frozen=True)
class Context:
    """All that a part may use."""

    given: Given  # the model as it was given: `path`, `kind` (`pair` is an expert file), `experts`
    target: Target
    reference: Target  # the anchor
    members: Sample | None  # documents that were trained on
    non_members: Sample | None  # documents of the same source that were not
    canaries: Manifest | None
    settings: Settings = Settings()
    extra: Extra = Extra()

    @cached_property
    def scores(self) -> Store[Scores]:
        """What models say of documents, kept."""
        return Store(self.settings.cache, Scores)


@dataclass(frozen=True)
class Part:
    """One attack."""

    name: str
    needs: tuple[Need, ...]
    run: Callable[[Context], list[Row]]
    interval: str = "95 % interval"  # what `low` and `high` of its rows are
    reference: str = "anchor"  # what `reference` of its rows is: the figure of what anybody has

    def lacks(self, context: Context) -> list[Need]:
        """What it needs and `context` does not have."""
        has: Mapping[Need, Any] = {
            "--source": context.members is not None and context.non_members is not None,
            "--canaries": context.canaries,
            "an expert file": context.given.kind == "pair",
            "a merged folder": context.given.experts,
            "--domains": context.extra.domains,
            "--never": context.extra.never,
        }
        return [need for need in self.needs if not has[need]]
