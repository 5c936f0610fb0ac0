"""Optimisers over what is trained, and learning-rate schedules as plain functions of the step."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import nn
from torch.distributed.tensor import DTensor

from flexo.errors import InputError
from trainers.loop.sharded_adafactor import ShardedAdafactor

Kind = Literal["adamw", "adafactor"]
Schedule = Literal["cosine", "wsd"]


@dataclass(frozen=True)
class OptimizerOptions:
    """An optimiser, and how its learning rate goes up and down."""

    lr: float  # peak
    kind: Kind = "adamw"  # adafactor holds a row and a column of second moments per matrix, and no first moment
    schedule: Schedule = "cosine"  # wsd: warmup, stable, linear decay (MiniCPM, arXiv 2404.06395, section 4)
    betas: tuple[float, float] = (0.9, 0.95)
    weight_decay: float = 0.0  # on matrices; vectors are never decayed
    warmup: float = 0.05  # share of all steps
    decay: float = 0.2  # of wsd, share of all steps
    final: float = 0.1  # learning rate at the end, as a share of the peak
    row_lr: float | None = None  # peak for router rows and biases; None: as the rest

    def __post_init__(self) -> None:
        if not 0 <= self.warmup + self.decay <= 1 or min(self.warmup, self.decay) < 0:
            raise InputError(
                f"optimizer.warmup={self.warmup}, optimizer.decay={self.decay}: expected shares of all steps, together "
                "at most 1."
            )

    def build(self, named: Iterable[tuple[str, nn.Parameter]]) -> torch.optim.Optimizer:
        """An optimiser over exactly these parameters."""
        groups: dict[tuple[bool, bool], list[nn.Parameter]] = {}
        for name, parameter in named:
            is_row = name.endswith((".row_D", ".bias"))
            groups.setdefault((is_row, parameter.ndim > 1), []).append(parameter)
        assert groups, "nothing to train"
        settings: list[dict[str, Any]] = [
            {
                "params": parameters,
                "lr": self.row_lr if is_row and self.row_lr is not None else self.lr,
                "weight_decay": self.weight_decay if is_matrix else 0.0,
            }
            for (is_row, is_matrix), parameters in groups.items()
        ]
        if self.kind == "adafactor":
            spread = all(isinstance(parameter, DTensor) for part in settings for parameter in part["params"])
            return (ShardedAdafactor if spread else torch.optim.Adafactor)(settings)
        return torch.optim.AdamW(settings, betas=self.betas, fused=True)

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
