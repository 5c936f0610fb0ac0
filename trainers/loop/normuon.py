"""NorMuon for the matrices of layers and AdamW for all else, as one optimiser with one state.

    M <- mu M + (1 - mu) G                   U = polar((1 - mu) G + mu M)
    v <- beta v + (1 - beta) mean(U^2)       of each row of U
    U <- U / sqrt(v)                         W <- (1 - lr decay) W - 0.2 lr U / rms(U)

polar(X) is X with all its singular values near 1 (Muon, Keller Jordan 2024, kellerjordan.github.io/posts/muon). Rows,
which are neurons, come out of it in very different sizes, and are then made to move as far as each other on average
(NorMuon, arXiv 2510.05491, algorithm 1). A step is as large as AdamW's at the same rate (arXiv 2502.16982, 2.2).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from trainers.dealing import dealt, devices_of, own_part, share
from trainers.distributed import computes_in_bf16

QUINTIC = (3.4445, -4.7750, 2.0315)  # a, b, c: the steepest at 0 that keeps singular values within 0.7 and 1.2
ITERATIONS = 5
LIKE_ADAMW = 0.2  # the root mean square of AdamW's steps
ROW_BETA = 0.95  # how slowly the mean squares of rows change
NOTHING = 1e-12  # smaller than any norm that is not 0


class NorMuon(torch.optim.AdamW):
    """`torch.optim.AdamW`, but for parameter groups with a `momentum`: those are matrices, and NorMuon's.

    A group's `stacked` says of how many matrices of the same shape, one below the other, each of its matrices is made.
    """

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        groups = self.param_groups
        for group in groups:
            if "momentum" in group:
                moving = [parameter for parameter in group["params"] if parameter.grad is not None]
                few = devices_of(moving[0]) if moving else 1
                for first in range(0, len(moving), few):
                    self._update(moving[first : first + few], group)
        self.param_groups = [group for group in groups if "momentum" not in group]
        try:
            super().step()
        finally:
            self.param_groups = groups
        return loss

    def _update(self, parameters: list[torch.Tensor], group: dict[str, Any]) -> None:
        """Moves as many matrices as there are devices, of which each works out the direction of one."""
        mixed = [self._mixed(parameter, group) for parameter in parameters]
        squares = [self.state[parameter]["row_squares"] for parameter in parameters]
        for k, update in enumerate(dealt(mixed, lambda k, whole: _direction(whole, squares[k]))):
            share(squares[k], k, like=parameters[k])
            kept = 1 - group["lr"] * group["weight_decay"]
            own_part(parameters[k]).mul_(kept).add_(update, alpha=-group["lr"] * LIKE_ADAMW)

    def _mixed(self, parameter: torch.Tensor, group: dict[str, Any]) -> torch.Tensor:
        """The gradient and the mean of gradients, mixed, on the devices that the parameter is on."""
        grad, state, momentum = parameter.grad, self.state[parameter], group["momentum"]
        assert grad is not None
        if not state:
            rows = (*parameter.shape[:-2], group["stacked"], parameter.shape[-2] // group["stacked"])
            state["step"] = torch.tensor(0.0)  # AdamW wants one in every state that it loads
            state["momentum_buffer"] = torch.zeros_like(parameter)
            state["row_squares"] = torch.zeros(*rows, 1, dtype=parameter.dtype, device=parameter.device)
        return grad.lerp(state["momentum_buffer"].lerp_(grad, 1 - momentum), momentum)


def _direction(mixed: torch.Tensor, squares: torch.Tensor) -> torch.Tensor:
    """The step of a whole matrix, whose entries have a root mean square of 1; `squares` are those of its rows."""
    update = polar(mixed.reshape(*squares.shape[:-1], -1)).to(mixed.dtype)
    squares.lerp_(update.square().mean(-1, keepdim=True), 1 - ROW_BETA)
    update.div_(squares.sqrt().clamp(min=NOTHING))
    update.div_(update.square().mean((-2, -1), keepdim=True).sqrt().clamp(min=NOTHING))
    return update.reshape(mixed.shape)


def polar_flops(rows: int, columns: int) -> float:
    """Of `polar` on one matrix: two products with the matrix in each iteration, and one of its smaller side alone."""
    small, large = sorted((rows, columns))
    return ITERATIONS * (4.0 * large + 2.0 * small) * small**2


def polar(x: torch.Tensor) -> torch.Tensor:
    """Matrices [..., M, N] with the same singular vectors and singular values near 1, by Newton-Schulz iterations.

    In bf16 where the device computes in it. A matrix of zeros stays one.
    """
    a, b, c = QUINTIC
    wide = x.reshape(-1, *x.shape[-2:])
    if tall := x.shape[-2] > x.shape[-1]:
        wide = wide.mT
    wide = wide / wide.norm(dim=(-2, -1), keepdim=True).clamp(min=NOTHING)
    wide = wide.to(torch.bfloat16 if computes_in_bf16(x.is_cuda) else torch.float32)
    for _ in range(ITERATIONS):
        gram = wide @ wide.mT
        wide = torch.baddbmm(wide, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), wide, beta=a)
    return (wide.mT if tall else wide).reshape(x.shape)
