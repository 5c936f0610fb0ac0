"""What stands in for a model's MoE blocks while experts are selected: the same router, the same experts, fewer choices.

The stand-ins are modules of other classes, not hooks: a compiled model looks at the class of each part when it is
called, and so never runs code that was compiled for another selection. Hooks added after compilation may go unseen.

B sequences, T positions, N = B T tokens, D hidden size, E experts of the model, S of them selected, K active ones.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from merge.errors import InputError


class SelectedBlock(nn.Module):
    """A `FlexOlmoSparseMoeBlock` that chooses among fewer experts; `restore` gives its parts back as they were."""

    def __init__(self, block: Any, batch: int | None) -> None:
        super().__init__()
        self.gate, self.experts, self.batch = block.gate, block.experts, batch

    def forward(self, x_BTD: torch.Tensor) -> torch.Tensor:
        if self.batch is not None and len(x_BTD) != self.batch:
            raise InputError(
                f"a batch of {len(x_BTD)} sequences, experts are selected for {self.batch}. Give a selection for each "
                "sequence; where generate makes several of one (num_beams, num_return_sequences), repeat it as often."
            )
        weights_NK, index_NK = self.choose(x_BTD)
        y_ND: torch.Tensor = self.experts(x_BTD.view(-1, x_BTD.shape[-1]), index_NK, weights_NK)
        return y_ND.view(x_BTD.shape)

    def choose(self, x_BTD: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Weights and numbers of the active experts, each [N, K]."""
        raise NotImplementedError

    def restore(self) -> None:
        """Leaves gate and experts as the model had them."""


class RowsBlock(SelectedBlock):
    """One selection for all: the router holds the selected rows alone, and its choices get the model's numbers.

    Args:
        chosen: the selected experts, ascending, so that tokens reach the experts in the order of a smaller model.
        top_k: active experts.
        batch: the number of sequences that the selection was made for; None takes any.
    """

    chosen: torch.Tensor

    def __init__(self, block: Any, chosen: Sequence[int], top_k: int, batch: int | None) -> None:
        super().__init__(block, batch)
        self.whole = block.gate.weight, block.gate.num_experts, block.gate.top_k
        self.register_buffer("chosen", torch.tensor(chosen, device=block.gate.weight.device), persistent=False)
        rows = nn.Parameter(block.gate.weight.detach()[self.chosen], requires_grad=False)
        self._put(rows, len(chosen), top_k)

    def choose(self, x_BTD: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        _, weights_NK, index_NK = self.gate(x_BTD)
        return weights_NK, self.chosen[index_NK]

    def restore(self) -> None:
        self._put(*self.whole)

    def _put(self, weight: nn.Parameter, experts: int, top_k: int) -> None:
        self.gate.weight, self.gate.num_experts, self.gate.top_k = weight, experts, top_k


class SequencesBlock(SelectedBlock):
    """A selection for each sequence: rows that it may not use are out before the softmax, their experts never run.

    A sequence with fewer than K experts fills its places with one of its own, at weight 0.

    Args:
        choices: the selected experts of each sequence.
        top_k: active experts, at most; a sequence has as many as its selection allows.
    """

    allowed: torch.Tensor
    spare: torch.Tensor

    def __init__(self, block: Any, choices: Sequence[Sequence[int]], top_k: int) -> None:
        super().__init__(block, len(choices))
        self.top_k = top_k
        allowed_BE = torch.zeros(len(choices), block.gate.num_experts, dtype=torch.bool)
        for sequence, choice in enumerate(choices):
            allowed_BE[sequence, list(choice)] = True
        device = block.gate.weight.device
        self.register_buffer("allowed", allowed_BE.to(device), persistent=False)
        self.register_buffer("spare", torch.tensor([choice[0] for choice in choices], device=device), persistent=False)

    def choose(self, x_BTD: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        length = x_BTD.shape[1]
        logits_NE, _, _ = self.gate(x_BTD)
        allowed_NE = self.allowed.repeat_interleave(length, 0)
        # replaced, not multiplied: a row of NaN must be as absent as any other
        probabilities_NE = logits_NE.where(allowed_NE, -torch.inf).softmax(-1, dtype=torch.float)
        weights_NK, index_NK = probabilities_NE.topk(self.top_k)
        if self.gate.norm_topk_prob:
            weights_NK = weights_NK / weights_NK.sum(-1, keepdim=True)
        mine_NK = allowed_NE.gather(1, index_NK)
        spare_N1 = self.spare.repeat_interleave(length)[:, None]
        return weights_NK.where(mine_NK, 0).to(logits_NE.dtype), index_NK.where(mine_NK, spare_N1)
