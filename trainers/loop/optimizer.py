"""Optimisers over what is trained, and learning-rate schedules as plain functions of the step."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import nn
from torch.distributed.tensor import DTensor

from flexo.errors import InputError
from trainers.loop.normuon import NorMuon
from trainers.loop.sharded_adafactor import ShardedAdafactor

Kind = Literal["adamw", "normuon", "adafactor"]
Schedule = Literal["cosine", "wsd"]
BEST_LR: dict[Kind, float] = {"adamw": 2e-3, "normuon": 1e-2, "adafactor": 2e-3}  # of an expert, docs/log.md
KNOWS_LITTLE = 2.0  # bits per byte of public text: of anchors for which the rate above is the best (docs/log.md)
LEAST = 0.1  # of that rate: far below what was tried
NO_MAP = re.compile(r"embed_tokens|lm_head|\.gate\.")  # matrices whose rows are vectors of tokens or experts


@dataclass(frozen=True)
class OptimizerOptions:
    """An optimiser, and how its learning rate goes up and down."""

    lr: float | None = None  # peak; None: the best of its kind
    kind: Kind = "adamw"  # normuon: of matrices within layers; the rest is AdamW's. adafactor: no matrix of moments
    schedule: Schedule = "cosine"  # wsd: warmup, stable, linear decay (MiniCPM, arXiv 2404.06395, section 4)
    betas: tuple[float, float] = (0.9, 0.95)
    momentum: float = 0.8  # of normuon
    weight_decay: float = 0.0  # on matrices; vectors are never decayed
    warmup: float = 0.05  # share of all steps
    decay: float = 0.2  # of wsd, share of all steps
    final: float = 0.1  # learning rate at the end, as a share of the peak
    row_lr: float | None = None  # peak for router rows and biases; None: as the rest
    rest_lr: float | None = None  # of normuon, peak for what is AdamW's and no row; None: as the peak

    def __post_init__(self) -> None:
        if not 0 <= self.warmup + self.decay <= 1 or min(self.warmup, self.decay) < 0:
            raise InputError(
                f"optimizer.warmup={self.warmup}, optimizer.decay={self.decay}: expected shares of all steps, together "
                "at most 1."
            )
        if self.rest_lr is not None and self.kind != "normuon":
            raise InputError(
                f"optimizer.rest_lr={self.rest_lr}: of optimizer.kind=normuon, not of {self.kind}. "
                "Set optimizer.rest_lr=null."
            )

    @property
    def peak(self) -> float:
        """The learning rate at its peak, of all that has none of its own."""
        return BEST_LR[self.kind] if self.lr is None else self.lr

    def for_anchor(self, public_bits: float | None) -> OptimizerOptions:
        """These options for experts of an anchor that predicts held-out public text in so many bits per byte.

        Where no rate is set, NorMuon's is the smaller the more the anchor knows: it moves every direction as far, and
        an anchor that knows much leaves few that are not noise. None, of an anchor that does not say: as if it
        knew little.
        """
        if self.lr is not None or self.kind != "normuon":
            return self
        known = 1.0 if public_bits is None else public_bits / KNOWS_LITTLE
        return replace(self, lr=self.peak * min(1.0, max(known**2, LEAST)))

    def build(self, named: Iterable[tuple[str, nn.Parameter]]) -> torch.optim.Optimizer:
        """An optimiser over exactly these parameters."""
        settings: dict[tuple[Any, ...], dict[str, Any]] = {}
        for name, parameter in named:
            group = self._group(name, parameter)
            settings.setdefault(tuple(group.values()), {"params": [], **group})["params"].append(parameter)
        assert settings, "nothing to train"
        groups = list(settings.values())
        if self.kind == "normuon":
            return NorMuon(groups, betas=self.betas)
        if self.kind == "adafactor":
            spread = all(isinstance(parameter, DTensor) for group in groups for parameter in group["params"])
            return (ShardedAdafactor if spread else torch.optim.Adafactor)(groups)
        return torch.optim.AdamW(groups, betas=self.betas, fused=True)

    def _group(self, name: str, parameter: nn.Parameter) -> dict[str, Any]:
        """The settings of the group that a parameter belongs to."""
        is_matrix = parameter.ndim > 1
        group = {"lr": self.peak, "weight_decay": self.weight_decay if is_matrix else 0.0}
        if self.kind == "normuon" and is_matrix and not NO_MAP.search(name):
            return group | {"momentum": self.momentum, "stacked": 2 if name.endswith("gate_up_proj") else 1}
        own = self.row_lr if name.endswith((".row_D", ".bias")) else self.rest_lr
        return group if own is None else group | {"lr": own}

    def factor(self, steps: int) -> Callable[[int], float]:
        """The factor on the peak learning rate at each step of a run: linear warmup, then down to `final`.

        Cosine goes down along half a cosine; wsd stays at the peak and goes down in a line over the last steps.
        """
        warmup = max(1, round(self.warmup * steps))
        start = warmup if self.schedule == "cosine" else max(warmup, steps - round(self.decay * steps))

        def at(step: int) -> float:
            if step < warmup:
                return (step + 1) / warmup
            done = min(1.0, max(0, step - start) / max(1, steps - start))
            left = 0.5 * (1 + math.cos(math.pi * done)) if self.schedule == "cosine" else 1 - done
            return self.final + (1 - self.final) * left

        return at
