"""What an audit measures about an expert, and the policy that turns a figure into a warning or a refusal."""

from __future__ import annotations

import json
import math
from dataclasses import asdict, dataclass, field
from statistics import fmean, median
from typing import Any


@dataclass(frozen=True)
class Limits:
    """A figure above the first number is a warning, above the second a refusal. docs/security.md says why these."""

    mass: tuple[float, float] = (0.6, 0.9)  # router mass on public text beside the public expert, mean over layers
    loss: tuple[float, float] = (0.05, 0.15)  # relative rise of the loss on public text caused by the expert
    outlier: float = 10.0  # warning alone: a row so many times longer or shorter than its layer's median over experts


@dataclass(frozen=True)
class Layer:
    """One expert in one layer, on public text."""

    mass_alone: float  # router mass when it stands beside the public expert alone
    mass_all: float  # router mass among all experts
    entropy: float  # bits of the router's choice beside the public expert, mean over tokens: from 0 to 1
    norm: float  # length of its router row, over that of the public row
    margin: float | None  # root mean square of (r - r_pub).x on the anchor's text; None if the anchor has no moments


@dataclass
class Audited:
    """One expert: its figures, and what speaks against merging it."""

    file: str
    domain: str
    layers: list[Layer] = field(default_factory=list)
    loss_alone: float | None = None  # nats per token of public text with the public expert and this one
    loss_without: float | None = None  # nats per token of public text with all experts but this one
    warnings: list[str] = field(default_factory=list)
    refusals: list[str] = field(default_factory=list)

    @property
    def mass_alone(self) -> float:
        return fmean(layer.mass_alone for layer in self.layers)

    @property
    def mass_all(self) -> float:
        return fmean(layer.mass_all for layer in self.layers)

    @property
    def verdict(self) -> str:
        return "refused" if self.refusals else "warning" if self.warnings else "passed"


@dataclass
class Audit:
    """All experts, and the loss on public text with none and with all of them."""

    text: str
    tokens: int
    experts: list[Audited]
    loss_public: float | None = None
    loss_all: float | None = None

    def to_dict(self) -> dict[str, Any]:
        """All fields, for JSON; figures that are not finite become null."""
        found = json.loads(json.dumps(asdict(self)), parse_constant=lambda _name: None)
        for entry, expert in zip(found["experts"], self.experts, strict=True):
            entry["verdict"] = expert.verdict
        return dict(found)


def judge(expert: Audited, result: Audit, limits: Limits) -> None:
    """Adds to `expert` a warning or a refusal for each figure above its limit; NaN counts as above every limit."""
    figures = [
        (expert.mass_alone, limits.mass, "takes {:.0%} of the router mass on public text from the public expert"),
        (
            _rise(expert.loss_alone, result.loss_public),
            limits.loss,
            "beside the public expert, the loss on public text changes by {:+.1%}",
        ),
        (
            _rise(result.loss_all, expert.loss_without),
            limits.loss,
            "among all experts, the loss on public text changes by {:+.1%}",
        ),
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
    """The relative rise of a loss; 0 if `before` is not finite, since then another expert is at fault."""
    assert loss is not None and before is not None, "both were measured"
    return loss / before - 1 if math.isfinite(before) else 0.0
