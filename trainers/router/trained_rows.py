"""A FlexOlmo layer's router of which only the owners' rows are trained."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import nn
from torch.func import functional_call
from transformers import PreTrainedModel


class TrainedRows(nn.Module):
    """Takes the place of a FlexOlmo layer's `gate`, whose own rows stay as they were: what routing started from.

    A softmax does not change when one vector is added to all rows, so a router whose first row is held can do whatever
    one with all rows trained can. Held, the public row stays the one that all owners share.

    Args:
        gate: transformers' router of the layer.
        weight_ED: its rows as they are on disk, which `gate` may have rounded.
        train_public: whether row 0 is trained, too.
    """

    def __init__(self, gate: nn.Module, weight_ED: torch.Tensor, train_public: bool = False) -> None:
        super().__init__()
        self.gate = gate
        self.gate.weight = nn.Parameter(weight_ED.float(), requires_grad=False)
        self.held = 0 if train_public else 1
        self.rows = nn.Parameter(weight_ED[self.held :].float().clone())

    def weight(self) -> torch.Tensor:
        """The router [E, D] in float32."""
        return torch.cat([self.gate.get_parameter("weight")[: self.held], self.rows])

    def forward(self, x: torch.Tensor) -> Any:
        return functional_call(self.gate, {"weight": self.weight()}, (x,))

    def logits_at_start(self, x_ND: torch.Tensor) -> torch.Tensor:
        """What the rows that training started from make of the same states, [N, E]."""
        return nn.functional.linear(x_ND, self.gate.get_parameter("weight").to(x_ND.dtype)).float()


def train_rows_only(
    model: PreTrainedModel, rows: Iterable[torch.Tensor], train_public: bool = False
) -> PreTrainedModel:
    """Freezes a FlexOlmo model but for its router rows, given layer by layer. Changes `model` and returns it."""
    model.requires_grad_(False)
    for layer, weight_ED in zip(model.model.layers, rows, strict=True):
        layer.mlp.gate = TrainedRows(layer.mlp.gate, weight_ED, train_public)
    return model
