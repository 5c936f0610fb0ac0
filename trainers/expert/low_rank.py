"""A low-rank expert: the frozen feed-forward network plus a trained product of two thin matrices per projection.

    W_1 = W_0 + B A,   A [r, in], B [out, r]       B starts at zero, so the expert starts as the public network

(LoRA, arXiv 2106.09685, on all three projections and with scale 1.) The products of the input with the public gate and
up projections serve both experts, so a low-rank pair costs little more than one network. Exported, it is an ordinary
expert: the sum is formed once.

N positions, D hidden size, F feed-forward size, r rank.
"""

from __future__ import annotations

import torch
from torch import nn
from torch.nn.functional import linear, silu

from trainers.distributed import whole
from trainers.expert.paired_ffn import Weights
from trainers.expert.unit_gradients import UnitGradients, recorded_linear


class LowRankExpert(nn.Module):
    """The thin matrices of one layer; the public weights they add to are given with each call.

    Args:
        public: gate [F, D], up [F, D] and down [D, F] projection of the frozen network.
        rank: r.
    """

    def __init__(self, public: Weights, rank: int) -> None:
        super().__init__()
        self.A = nn.ParameterList(torch.empty(rank, weight.shape[1]) for weight in public)
        self.B = nn.ParameterList(torch.zeros(weight.shape[0], rank) for weight in public)
        for a in self.A:
            nn.init.kaiming_uniform_(a, a=5**0.5)

    def mixture(
        self, x: torch.Tensor, p: torch.Tensor, public: Weights, units: UnitGradients | None = None
    ) -> torch.Tensor:
        """The mixture of the public network and this expert, [..., D]; `p` [..., 1] is the expert's share."""
        gate, up, down = public
        a, u = linear(x, gate), linear(x, up)
        s0 = silu(a) * u
        s1 = silu(a + self._delta(x, 0, units)) * (u + self._delta(x, 1, units))
        # down is linear: y_0 + p (y_1 - y_0) needs one product with it, not two
        share = p.to(s0.dtype)
        return linear(torch.lerp(s0, s1, share), down) + share * self._delta(s1, 2, units)

    def weights(self, public: Weights) -> Weights:
        """Gate, up and down projection of the expert, in float32."""
        parts = zip(public, self.A, self.B, strict=True)
        gate, up, down = (whole(weight).float() + whole(b) @ whole(a) for weight, a, b in parts)
        return gate, up, down

    def _delta(self, x: torch.Tensor, part: int, units: UnitGradients | None) -> torch.Tensor:
        return recorded_linear(recorded_linear(x, self.A[part], units), self.B[part], units)
