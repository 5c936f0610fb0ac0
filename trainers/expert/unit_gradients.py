"""Gradients by unit, without a gradient tensor for each: their norms, and the sum of them, each scaled.

A unit (a document, a patient, an account) is a stretch of windows in a batch. The gradient of a linear map's weight W
with respect to unit u is `G_u = dY_u' X_u`, from its inputs X and the gradients dY of its outputs. During backward
these two are kept and no weight has a gradient. Then, layer by layer and unit by unit,

    |G_u|^2 = sum (dY_u dY_u') * (X_u X_u')      or of G_u itself, whichever is less work

(Goodfellow 2015, arXiv 1510.01799; the choice is that of Bu et al. 2022, arXiv 2205.10683), and once all norms are
known, `sum_u c_u G_u = (c dY)' X`, one product for all units together (book-keeping, Bu et al. 2022, arXiv 2210.00038).
Backward runs once. What is kept of a layer (x, and the gradients inside) is less than what forward had kept of it.

N positions, O and I outputs and inputs of a linear map, U units.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from torch import nn
from torch.autograd.function import once_differentiable

Span = tuple[int, int]  # the positions [first, last) of a unit in a flattened batch


@dataclass(frozen=True)
class _Recorded:
    """What the gradients of one or more weights with the same input are made of."""

    weights: Sequence[nn.Parameter]  # [O, I] each
    grads: Sequence[torch.Tensor]  # of the outputs, [N, O] each
    inputs: torch.Tensor  # [N, I]


class UnitGradients:
    """Collects during one backward what the gradients of linear maps are made of, for units at `spans`.

        units = UnitGradients(spans)
        with units.recording(layers):       # modules that read `units` in forward
            loss.backward()
        norms_U = units.norms()
        units.add_scaled(factors_U)         # to the parameters' grad

    Positions outside of all spans count with factor `rest` and belong to nobody: public text.
    """

    def __init__(self, spans: Sequence[Span]) -> None:
        assert all(a < b for a, b in spans), f"empty units: {spans}"
        assert all(a[1] <= b[0] for a, b in pairwise(spans)), f"units overlap: {spans}"
        self.spans = list(spans)
        self._recorded: list[_Recorded] = []

    @contextmanager
    def recording(self, layers: Sequence[Any]) -> Iterator[None]:
        """While it lasts, the weights of `layers` get no gradient, and what they are made of is kept here."""
        for layer in layers:
            layer.units = self
        try:
            yield
        finally:
            for layer in layers:
                layer.units = None

    def record(self, weights: Sequence[nn.Parameter], grads: Sequence[torch.Tensor], inputs: torch.Tensor) -> None:
        """Called in backward by one linear map, or by several with the same `inputs`; nobody may change the tensors."""
        self._recorded.append(_Recorded(weights, grads, inputs))

    def norms(self) -> torch.Tensor:
        """The norm of each unit's gradient over all recorded weights, [U] float32."""
        squares_U: torch.Tensor | None = None
        for recorded in self._recorded:
            part_U = torch.stack([_square(recorded, span) for span in self.spans])
            squares_U = part_U if squares_U is None else squares_U + part_U
        assert squares_U is not None, "nothing was recorded"
        return squares_U.sqrt()

    def add_scaled(self, factors_U: torch.Tensor, rest: float = 0.0) -> None:
        """Adds the sum of all units' gradients, each times its factor, to `grad` of the parameters, and forgets them.

        Args:
            factors_U: of the units, [U].
            rest: of positions that belong to no unit.
        """
        while self._recorded:  # a layer's tensors go before the next one's product is made
            recorded = self._recorded.pop()
            inputs_NI = recorded.inputs.float()  # what a norm bounds is summed as exactly as it was measured
            factor_N1 = inputs_NI.new_full((len(inputs_NI), 1), rest)
            for (first, last), factor in zip(self.spans, factors_U.float(), strict=True):
                factor_N1[first:last] = factor
            for weight, grad_NO in zip(recorded.weights, recorded.grads, strict=True):
                product_OI = (grad_NO.float() * factor_N1).T @ inputs_NI
                product = product_OI.to(weight.dtype).view_as(weight)
                weight.grad = product if weight.grad is None else weight.grad.add_(product)


def recorded_linear(x: torch.Tensor, weight: nn.Parameter, units: UnitGradients | None) -> torch.Tensor:
    """`x @ weight.T` for x [..., I] and a weight [O, I] or, for one output, [I]; recorded where `units` are given."""
    matrix_OI = weight.view(-1, x.shape[-1])
    if units is None or not weight.requires_grad:
        return nn.functional.linear(x, matrix_OI.to(x.dtype))
    y: torch.Tensor = _RecordedLinear.apply(x, matrix_OI.detach(), weight, units)  # type: ignore[no-untyped-call]
    return y


class _RecordedLinear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, matrix_OI: torch.Tensor, weight: nn.Parameter, units: Any) -> torch.Tensor:
        ctx.save_for_backward(x, matrix_OI)
        ctx.weight, ctx.units = weight, units
        return nn.functional.linear(x, matrix_OI.to(x.dtype))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        x, matrix_OI = ctx.saved_tensors
        ctx.units.record([ctx.weight], [dy.flatten(0, -2)], x.flatten(0, -2))
        return dy @ matrix_OI.to(dy.dtype) if ctx.needs_input_grad[0] else None, None, None, None


def _square(recorded: _Recorded, span: Span) -> torch.Tensor:
    """The squared norm of one unit's gradient of some weights with the same input."""
    first, last = span
    x_TI = recorded.inputs[first:last].float()
    parts = [grad_NO[first:last].float() for grad_NO in recorded.grads]
    positions, inputs = x_TI.shape
    outputs = sum(part_TO.shape[1] for part_TO in parts)
    if positions * (outputs + inputs) < outputs * inputs:
        products_TT = sum(part_TO @ part_TO.T for part_TO in parts)
        return ((x_TI @ x_TI.T) * products_TT).sum().clamp(min=0)
    return sum(((part_TO.T @ x_TI).square().sum() for part_TO in parts), start=x_TI.new_zeros(()))
