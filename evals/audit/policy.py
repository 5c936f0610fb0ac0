"""What an audit finds about an expert, and the policy that makes it a warning or a refusal."""

from __future__ import annotations

import json
import math
from dataclasses import asdict, dataclass, field
from statistics import median
from typing import Any


@dataclass(frozen=True)
class Limits:
    """Above the first a figure is warned about, above the second the expert is refused. `docs/security.md` has why."""

    share: tuple[float, float] = (0.6, 0.9)  # of public text, beside the public expert alone, mean over layers
    loss: tuple[float, float] = (0.05, 0.15)  # rise of the loss on public text, over the same without the expert
    outlier: float = 10.0  # warned about: how often a row is longer or shorter than the median of all, in its layer


@dataclass(frozen=True)
class Layer:
    """One expert in one layer, on public text."""

    share_alone: float  # router mass beside the public expert alone
    share_all: float  # router mass among all
    entropy: float  # of the choice between the two, mean over tokens: 0 certain, 1 a coin
    norm: float  # of the row, over the public row's
    margin: float | None  # root mean square of (r - r_pub).x on the anchor's text; None if it ships no moments


@dataclass
class Audited:
    """One expert: what was measured, and what is wrong with it."""

    file: str
    domain: str
    layers: list[Layer] = field(default_factory=list)
    loss_alone: float | None = None  # nats per token of public text, with the public expert and this one
    loss_without: float | None = None  # ... with all experts but this one
    warnings: list[str] = field(default_factory=list)
    refusals: list[str] = field(default_factory=list)

    @property
    def share_alone(self) -> float:
        return sum(layer.share_alone for layer in self.layers) / len(self.layers)

    @property
    def share_all(self) -> float:
        return sum(layer.share_all for layer in self.layers) / len(self.layers)

    @property
    def verdict(self) -> str:
        return "refused" if self.refusals else "warning" if self.warnings else "passed"


@dataclass
class Audit:
    """All experts, and public text with none and all of them."""

    text: str
    tokens: int
    experts: list[Audited]
    loss_public: float | None = None
    loss_all: float | None = None

    def to_dict(self) -> dict[str, Any]:
        """Everything, for JSON, where what is not finite is null."""
        found = json.loads(json.dumps(asdict(self)), parse_constant=lambda _name: None)
        for entry, expert in zip(found["experts"], self.experts, strict=True):
            entry["verdict"] = expert.verdict
        return dict(found)


def judge(expert: Audited, result: Audit, limits: Limits) -> None:
    """Adds what passes the limits; a NaN passes all."""
    figures = [
        (expert.share_alone, limits.share, "takes {:.0%} of public text beside the public expert alone"),
        (
            _rise(expert.loss_alone, result.loss_public),
            limits.loss,
            "beside the public expert, public text costs {:+.1%}",
        ),
        (_rise(result.loss_all, expert.loss_without), limits.loss, "among all experts, public text costs {:+.1%}"),
    ]
    for value, (warn, refuse), words in figures:
        if not value <= warn:
            (expert.warnings if value <= refuse else expert.refusals).append(words.format(value))
    others = [other for other in result.experts if other.layers]
    for kind, words in (("norm", "a row norm"), ("margin", "a router margin")):
        far = []
        for n, layer in enumerate(expert.layers):
            values = [getattr(other.layers[n], kind) for other in others]
            if len(values) > 2 and None not in values:
                times = getattr(layer, kind) / max(median(values), 1e-30)
                if not 1 / limits.outlier <= times <= limits.outlier:
                    far.append(f"{times:.2g} times in layer {n}")
        if far:
            expert.warnings.append(f"{words} far from the median of all: {', '.join(far[:3])}")


def _rise(loss: float | None, before: float | None) -> float:
    """The rise of a loss; none from a loss that is not finite, for which another expert is to blame."""
    assert loss is not None and before is not None, "both were measured"
    return loss / before - 1 if math.isfinite(before) else 0.0
