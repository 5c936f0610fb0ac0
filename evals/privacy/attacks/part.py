"""What every part of `flexo-leak` is: a name, what it needs, and a function from the models and texts to figures.

PART = Part("membership", ("members",), run)        # in its module, and in the list of `evals.privacy.leak`

def run(context: Context) -> list[Row]: ...
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from transformers import PreTrainedModel

from evals.matrix.measurement_cache import Key
from evals.matrix.model_loader import Given
from evals.scoring.sliding_windows import TokenisedText

Need = Literal["members", "canaries", "expert file", "merged folder", "domains", "never"]


@dataclass(frozen=True)
class Row:
    """A figure, with its interval and the same figure of the reference, where there are such."""

    part: str
    figure: str  # what was measured: `AUC, loss less the anchor's`
    value: float
    low: float | None = None  # a 95 % interval, or what `figure` says
    high: float | None = None
    reference: float | None = None  # of the anchor, which anybody has: what is over it is what the model gives away
    group: str = "all"  # of documents, secrets or experts: `seen 3 times`


@dataclass(frozen=True)
class Target:
    """A model that is attacked or compared with. `enter()` loads it, or finds it loaded, for the time of a `with`."""

    name: str
    key: Key  # of the weights and experts that run, for the cache
    enter: Callable[[], AbstractContextManager[PreTrainedModel]]


@dataclass(frozen=True)
class Extra:
    """What an attacker may have besides the model and the owner's text, and what the model is compared with."""

    domains: Path | None = None  # a folder with one corpus folder a domain
    never: Path | None = None  # a model that was merged without some of the experts
    embedding: Path | None = None  # of the owner's text, by flexo-embed
    proxies: Path | None = None  # the public documents that look like it, by flexo-data proxies
    max_bytes: int = 200_000  # of the text of each domain


@dataclass(frozen=True)
class Context:
    """All that a part may use."""

    given: Given  # the model as it was given: `path`, `kind` (`pair` is an expert file), `experts`
    target: Target
    reference: Target  # the anchor
    tokenizer: Path  # a folder
    members: TokenisedText | None  # documents that were trained on
    non_members: TokenisedText | None  # documents of the same source that were not
    extra: Extra = field(default_factory=Extra)
    seed: int = 0


@dataclass(frozen=True)
class Part:
    """One attack."""

    name: str
    needs: tuple[Need, ...]
    run: Callable[[Context], list[Row]]

    def lacks(self, context: Context) -> list[Need]:
        """What it needs and `context` does not have."""
        has: Mapping[Need, Any] = {
            "members": context.members is not None and context.non_members is not None,
            "canaries": False,
            "expert file": context.given.kind == "pair",
            "merged folder": context.given.experts,
            "domains": context.extra.domains,
            "never": context.extra.never,
        }
        return [need for need in self.needs if not has[need]]
