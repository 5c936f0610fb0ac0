"""AdamW over what is trained, and learning-rate schedules as plain functions of the step."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
from torch import nn


@dataclass(frozen=True)
class OptimizerOptions:
    """AdamW with linear warmup and cosine decay."""

    lr: float  # peak
    betas: tuple[float, float] = (0.9, 0.95)
    weight_decay: float = 0.0  # on matrices; vectors are never decayed
    warmup: float = 0.05  # share of all steps
    final: float = 0.1  # learning rate at the end, as a share of the peak
    row_lr: float | None = None  # peak for router rows and biases; None: as the rest

    def build(self, named: Iterable[tuple[str, nn.Parameter]]) -> torch.optim.AdamW:
        """An optimiser over exactly these parameters."""
        groups: dict[tuple[bool, bool], list[nn.Parameter]] = {}
        for name, parameter in named:
            is_row = name.endswith((".row_D", ".bias"))
            groups.setdefault((is_row, parameter.ndim > 1), []).append(parameter)
        assert groups, "nothing to train"
        return torch.optim.AdamW(
            [
                {
                    "params": parameters,
                    "lr": self.row_lr if is_row and self.row_lr is not None else self.lr,
                    "weight_decay": self.weight_decay if is_matrix else 0.0,
                }
                for (is_row, is_matrix), parameters in groups.items()
            ],
            betas=self.betas,
            fused=True,
        )

    def schedule(self, steps: int) -> Callable[[int], float]:
        """The factor on the peak learning rate at each step: linear warmup, then half a cosine down to `final`."""
        warmup = max(1, round(self.warmup * steps))

        def factor(step: int) -> float:
            if step < warmup:
                return (step + 1) / warmup
            done = min(1.0, (step - warmup) / max(1, steps - warmup))
            return self.final + (1 - self.final) * 0.5 * (1 + math.cos(math.pi * done))

        return factor
