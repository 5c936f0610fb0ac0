"""The arithmetic of a pair of gated feed-forward networks, one frozen and one trained, forward and backward by hand.

    s_h = silu(x G_h') * (x U_h'),   y_h = s_h D_h',   y = y_0 + p (y_1 - y_0)        h = 0 frozen, 1 trained

Written out because autograd would keep twice as much for it: between the passes only x, the four products with G and U,
and y_1 - y_0 are held. Gradients for the frozen weights do not exist, and where x needs none (the first layer, whose
input no trained parameter touches) the frozen half has no backward at all.

N positions, D hidden size, F feed-forward size.
"""

from __future__ import annotations

from typing import Any

import torch
from torch.autograd.function import once_differentiable
from torch.nn.functional import silu

from trainers.expert.unit_gradients import UnitGradients
from trainers.loop.next_token_loss import compute_dtype

Weights = tuple[torch.Tensor, torch.Tensor, torch.Tensor]  # gate [F, D], up [F, D], down [D, F]


def paired_ffn(
    x: torch.Tensor, p: torch.Tensor, frozen: Weights, trained: Weights, units: UnitGradients | None = None
) -> torch.Tensor:
    """The mixture of both networks.

    Args:
        x: [..., D].
        p: the share of the trained network at each position [..., 1], float32.
        frozen, trained: gate, up and down projections; the frozen ones get no gradient.
        units: given, the trained ones get none either: what their gradients are made of is recorded there.

    Returns:
        y [..., D], in the dtype that matrix products have here (autocast's, or that of `x`).
    """
    y_ND = _PairedFFN.apply(x.flatten(0, -2), p.flatten(0, -2), units, *frozen, *trained)  # type: ignore[no-untyped-call]
    return y_ND.view(*x.shape[:-1], -1)  # type: ignore[no-any-return]


class _PairedFFN(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x_ND: torch.Tensor, p_N1: torch.Tensor, units: UnitGradients | None, *weights: torch.Tensor
    ) -> torch.Tensor:
        dtype = compute_dtype(x_ND)
        with torch.autocast(x_ND.device.type, enabled=False):
            x = x_ND.to(dtype)
            kept, outputs = [], []
            for gate_FD, up_FD, down_DF in (weights[:3], weights[3:]):
                a_NF, u_NF = x @ gate_FD.to(dtype).T, x @ up_FD.to(dtype).T
                outputs.append((silu(a_NF) * u_NF) @ down_DF.to(dtype).T)
                kept += [a_NF, u_NF]
            difference_ND = outputs[1].sub_(outputs[0])
            y_ND = torch.addcmul(outputs[0], p_N1.to(dtype), difference_ND)
        ctx.save_for_backward(x, p_N1, difference_ND, *kept, *weights)
        ctx.x_dtype, ctx.units = x_ND.dtype, units
        ctx.trained = weights[3:] if units is not None else ()
        return y_ND

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy_ND: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        x, p_N1, difference_ND, a0_NF, u0_NF, a1_NF, u1_NF, *weights = ctx.saved_tensors
        need_x, need_p, need_weights = ctx.needs_input_grad[0], ctx.needs_input_grad[1], ctx.needs_input_grad[6]
        dtype, p = x.dtype, p_N1.to(x.dtype)
        dx_ND = None
        with torch.autocast(x.device.type, enabled=False):
            dy_ND = dy_ND.to(dtype)
            dp_N1 = (dy_ND * difference_ND).sum(-1, keepdim=True, dtype=p_N1.dtype) if need_p else None
            grads: list[torch.Tensor | None] = [None] * 6
            gate_FD, up_FD, down_DF = (weight.to(dtype) for weight in weights[3:])
            own_ND = dy_ND * p
            da_NF, du_NF, s_NF = _inside(own_ND @ down_DF, a1_NF, u1_NF)
            if need_weights and ctx.units is not None:
                ctx.units.record(ctx.trained[:2], [da_NF, du_NF], x)
                ctx.units.record(ctx.trained[2:], [own_ND], s_NF)
            elif need_weights:
                grads[3:] = [
                    (part_NX.T @ of_NX).to(weight.dtype)
                    for part_NX, of_NX, weight in zip((da_NF, du_NF, own_ND), (x, x, s_NF), weights[3:], strict=True)
                ]
            if need_x:
                dx_ND = (da_NF @ gate_FD).addmm_(du_NF, up_FD)
            del da_NF, du_NF, s_NF, gate_FD, up_FD, down_DF  # before the frozen half takes as much again
            if dx_ND is not None:
                gate_FD, up_FD, down_DF = (weight.to(dtype) for weight in weights[:3])
                da_NF, du_NF, _ = _inside((dy_ND - own_ND) @ down_DF, a0_NF, u0_NF)
                dx_ND = dx_ND.addmm_(da_NF, gate_FD).addmm_(du_NF, up_FD).to(ctx.x_dtype)
        return dx_ND, dp_N1, None, *grads


def _inside(
    ds_NF: torch.Tensor, a_NF: torch.Tensor, u_NF: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Gradients with respect to both products, and s, from the gradient with respect to s. Overwrites `ds_NF`."""
    silu_NF = silu(a_NF)
    s_NF = silu_NF * u_NF
    du_NF = silu_NF.mul_(ds_NF)
    da_NF = torch.ops.aten.silu_backward(ds_NF.mul_(u_NF), a_NF)
    return da_NF, du_NF, s_NF
