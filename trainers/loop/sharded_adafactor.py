"""Adafactor for parameters that are spread over devices by their rows, as FSDP2 leaves them.

PyTorch's own takes the norms of columns in place, which a spread tensor refuses (2.13). The arithmetic here is the same
(Adafactor, arXiv 1804.04235, as in the notes of `torch.optim.Adafactor`): a device updates the rows that it has, and
what concerns all rows, column means and norms, is summed over the devices.

n rows of a device, F of all; D columns.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch.distributed.tensor import DTensor, Partial, Shard


class ShardedAdafactor(torch.optim.Adafactor):
    """`torch.optim.Adafactor` over `DTensor`s that are cut along their first dimension; its options and state names."""

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    self._update(parameter, group)
        return loss

    def _update(self, parameter: DTensor, group: dict[str, Any]) -> None:
        assert parameter.placements == (Shard(0),) and parameter.ndim <= 2, f"{parameter.shape}: not cut by rows"
        state = self.state[parameter]
        weight, grad = parameter.to_local(), parameter.grad.to_local()  # type: ignore[union-attr]
        eps1, eps2 = group["eps"]
        eps1 = torch.finfo(weight.dtype).eps if eps1 is None else eps1
        if not state:
            state["step"] = torch.tensor(0.0)
            if grad.ndim == 2:
                state["row_var"] = _spread(grad.new_zeros(len(grad), 1), parameter)
                state["col_var"] = grad.new_zeros(1, grad.shape[1])
            else:
                state["variance"] = _spread(torch.zeros_like(grad), parameter)
        state["step"] += 1
        step = state["step"].item()
        share, lr = step ** group["beta2_decay"], float(group["lr"])

        def mean_square(local: torch.Tensor) -> torch.Tensor:
            return _sum(local.square().sum(), parameter) / parameter.numel()

        rate = mean_square(weight).sqrt().clamp(min=eps2) * min(lr, step**-0.5)
        weight.mul_(1 - lr * group["weight_decay"])
        if grad.ndim == 2:
            row_n1, column_1D = state["row_var"].to_local(), state["col_var"]
            rows, columns = parameter.shape
            row_n1.lerp_(grad.square().sum(1, keepdim=True) / columns, share)
            column_1D.lerp_(_sum(grad.square().sum(0, keepdim=True), parameter) / rows, share)
            variance = row_n1 @ column_1D / (_sum(row_n1.sum(), parameter) / rows).clamp(min=eps1)
        else:
            variance = state["variance"].to_local().lerp_(grad.square(), share)
        update = variance.clamp(min=eps1 * eps1).rsqrt_().mul_(grad)
        weight.sub_(update * (rate / (mean_square(update).sqrt() / group["d"]).clamp(min=1)))


def _spread(local: torch.Tensor, like: DTensor) -> DTensor:
    """A tensor of which every device has the rows that it has of `like`."""
    shape = (like.shape[0], *local.shape[1:])
    stride = (1,) * len(shape)  # of [F] and [F, 1]
    return DTensor.from_local(local, like.device_mesh, like.placements, shape=torch.Size(shape), stride=stride)


def _sum(local: torch.Tensor, over: DTensor) -> torch.Tensor:
    """The sum over the devices that `over` is spread on."""
    return DTensor.from_local(local, over.device_mesh, (Partial(),)).full_tensor()
