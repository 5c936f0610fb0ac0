"""Which experts run for which token: one function for every engine, and the MoE block of the engines in this room.

N tokens of a pass, those of its requests one after the other; D hidden size, E experts, K active ones, P = N K places
for them, S of these in use.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F  # noqa: N812 - the name everyone uses


def route(
    logits_NE: torch.Tensor, allowed_NE: torch.Tensor, top_k: int, normalise: bool
) -> tuple[torch.Tensor, torch.Tensor]:
    """Chooses each token's experts among those it may use: softmax and top-k as if no others were in the model.

    An expert that is not allowed is never named, not even with weight 0: it would run, and 0 times NaN is NaN. Places
    that a token has to spare get its best expert once more, at weight 0.

    Args:
        logits_NE: what the router says.
        allowed_NE: bool; at least one expert of every token.
        top_k: places, K.
        normalise: whether weights are made to sum to 1.

    Returns:
        Weights in float32 and numbers of experts, each [N, K].
    """
    p_NE = logits_NE.float().masked_fill(~allowed_NE, -torch.inf).softmax(-1)
    # a broken expert makes NaN of its own tokens' probabilities, which must not let others in
    _, index_NK = p_NE.nan_to_num(0.0).masked_fill(~allowed_NE, -1.0).topk(top_k)
    mine_NK = allowed_NE.gather(1, index_NK)
    weight_NK = p_NE.gather(1, index_NK).masked_fill(~mine_NK, 0.0)
    if normalise:
        weight_NK = weight_NK / weight_NK.sum(-1, keepdim=True)
    return weight_NK, index_NK.where(mine_NK, index_NK[:, :1])


class Rows:
    """What the blocks of a model read in a pass: who may use what. A pass that nobody has prepared uses expert 0 alone,
    the public one.

    Args:
        chooses: whether the experts of each layer differ; the others do not count in shares.
        experts: how many there are, E.
        top_k: places of a token, K.
        device: of the model.
    """

    def __init__(self, chooses: Sequence[bool], experts: int, top_k: int, device: torch.device) -> None:
        self.counted, self._top_k = sum(chooses), top_k
        self.used_S: torch.Tensor | None = None  # numbers of the places that are not spare; None if none is, or unknown
        self._public_1E = torch.arange(experts, device=device)[None] == 0
        self._allowed_NE: torch.Tensor | None = None
        self._share_NE = torch.zeros(0, experts)

    @contextmanager
    def prepared(self, allowed_RE: Sequence[Sequence[bool]], counts: Sequence[int]) -> Iterator[None]:
        """A pass of R requests with so many tokens each."""
        device = self._public_1E.device
        allowed_NE = torch.tensor(allowed_RE).repeat_interleave(torch.tensor(counts), 0)
        used_NK = torch.arange(self._top_k) < allowed_NE.sum(-1, keepdim=True)
        self.used_S = None if used_NK.all() else used_NK.flatten().nonzero()[:, 0].to(device)
        self._allowed_NE = allowed_NE.to(device)
        self._share_NE = torch.zeros(self._allowed_NE.shape, dtype=torch.float64, device=device)
        try:
            yield
        finally:
            self._allowed_NE = self.used_S = None

    def allowed(self, tokens: int) -> torch.Tensor:
        """[N, E]; refuses a pass of another size than was prepared."""
        if self._allowed_NE is None:
            return self._public_1E.expand(tokens, -1)
        assert len(self._allowed_NE) == tokens, f"prepared for {len(self._allowed_NE)} tokens, not {tokens}"
        return self._allowed_NE

    def count(self, weight_NK: torch.Tensor, index_NK: torch.Tensor) -> None:
        """Adds a layer to the shares of the prepared pass."""
        if self._allowed_NE is not None:
            part_NK = weight_NK.double() / weight_NK.double().sum(-1, keepdim=True)
            self._share_NE.scatter_add_(1, index_NK, part_NK)

    def shares(self, places: Sequence[int]) -> list[list[float]]:
        """Each expert's part in what is predicted at these tokens of the last prepared pass, mean over layers."""
        found: list[list[float]] = (self._share_NE[list(places)] / self.counted).tolist()
        return found


class EntitledBlock(nn.Module):
    """Stands in for a `FlexOlmoSparseMoeBlock`: the same router and experts, but every token has experts of its own."""

    def __init__(self, block: Any, rows: Rows, chooses: bool) -> None:
        super().__init__()
        self.gate, self.experts = block.gate, block.experts
        self.rows, self.chooses = rows, chooses

    def forward(self, x_BTD: torch.Tensor) -> torch.Tensor:
        x_ND = x_BTD.reshape(-1, x_BTD.shape[-1])
        logits_NE = F.linear(x_ND, self.gate.weight)
        allowed_NE = self.rows.allowed(len(x_ND))
        weight_NK, index_NK = route(logits_NE, allowed_NE, self.gate.top_k, self.gate.norm_topk_prob)
        weight_NK = weight_NK.to(logits_NE.dtype)
        if self.chooses:
            self.rows.count(weight_NK, index_NK)
        return self._run(x_ND, index_NK, weight_NK).view(x_BTD.shape)

    def _run(self, x_ND: torch.Tensor, index_NK: torch.Tensor, weight_NK: torch.Tensor) -> torch.Tensor:
        """Sum of the weighted experts. Spare places do not run: few experts cost no more than a model of so few."""
        y_ND: torch.Tensor
        if (used_S := self.rows.used_S) is None:
            y_ND = self.experts(x_ND, index_NK, weight_NK)
            return y_ND
        each = index_NK.shape[1]
        y_PD = x_ND.new_zeros(index_NK.numel(), x_ND.shape[1])
        y_PD[used_S] = self.experts(
            x_ND[used_S // each], index_NK.flatten()[used_S, None], weight_NK.flatten()[used_S, None]
        )
        return y_PD.view(len(x_ND), each, -1).sum(1)
