"""Replaces a model's MoE blocks while experts are selected: the same router, the same experts, fewer choices.

The replacements are modules of other classes, not hooks: a compiled model checks the class of each part when it is
called, and so never runs code that was compiled for another selection. Hooks added after compilation may not be called.

B sequences, T positions, N = B T tokens, D hidden size, E experts of the model, S of them selected, K active ones.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import nn
from torch.nn import functional as F  # noqa: N812 - the name everyone uses

from flexo.errors import InputError


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
    """A selection for each sequence: those of one selection choose among its rows, as if they were the whole batch.

    A router product over more rows would round otherwise, and differ from a smaller model's by more than batching does.
    The rows of every selection meet all tokens, and what they say of other sequences is dropped: against the experts a
    router costs nothing, and so products have the shape that they have when one selection holds for the batch.

    Args:
        choices: the selected experts of each sequence.
        top_k: active experts, at most; a sequence has as many as its selection allows.
    """

    def __init__(self, block: Any, choices: Sequence[Sequence[int]], top_k: int) -> None:
        super().__init__(block, len(choices))
        distinct = dict.fromkeys(tuple(choice) for choice in choices)
        whose = [[tuple(choice) == one for choice in choices] for one in distinct]
        self.groups = nn.ModuleList(
            GroupRows(block.gate, one, mine, top_k) for one, mine in zip(distinct, whose, strict=True)
        )

    def choose(self, x_BTD: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        self.gate(x_BTD)  # its result is not used here, but programs that record router logits hook into it
        x_ND, length = x_BTD.flatten(0, 1), x_BTD.shape[1]
        weights_NK, index_NK = self.groups[0](x_ND)
        for group in self.groups[1:]:
            mine_N1 = cast(GroupRows, group).mine.repeat_interleave(length)[:, None]
            weights, index = group(x_ND)
            weights_NK, index_NK = weights.where(mine_N1, weights_NK), index.where(mine_N1, index_NK)
        return weights_NK, index_NK


class GroupRows(nn.Module):
    """The router rows of one selection, which some sequences of a batch have.

    A sequence with fewer than K experts fills its places with one of its own, at weight 0.
    """

    rows: torch.Tensor
    chosen: torch.Tensor
    mine: torch.Tensor

    def __init__(self, gate: Any, chosen: Sequence[int], mine: Sequence[bool], top_k: int) -> None:
        super().__init__()
        self.top_k, self.norm, device = min(top_k, len(chosen)), gate.norm_topk_prob, gate.weight.device
        self.spare = top_k - self.top_k
        self.register_buffer("chosen", torch.tensor(chosen, device=device), persistent=False)
        self.register_buffer("rows", gate.weight.detach()[self.chosen], persistent=False)
        self.register_buffer("mine", torch.tensor(mine, device=device), persistent=False)

    def forward(self, x_ND: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """What `FlexOlmoTopKRouter` does, in the same order."""
        logits_NS = F.linear(x_ND, self.rows)
        weights_NK, index_NK = logits_NS.softmax(-1, dtype=torch.float).topk(self.top_k)
        if self.norm:
            weights_NK = weights_NK / weights_NK.sum(-1, keepdim=True)
        return F.pad(weights_NK, (0, self.spare)).to(logits_NS.dtype), self.chosen[F.pad(index_NK, (0, self.spare))]
