"""One run on several devices: who is first, how work is shared, what a checkpoint of sharded weights holds.

`ddp` keeps the whole model on every device and averages gradients. `fsdp` (FSDP2, `torch.distributed.fsdp`) spreads
weights, gradients and optimiser state over the devices, layer by layer.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Literal

import torch
import torch.distributed as dist
from lightning.pytorch.strategies import DDPStrategy, ModelParallelStrategy
from lightning.pytorch.utilities import rank_zero
from torch import nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor

StrategyName = Literal["auto", "ddp", "fsdp"]


def is_first() -> bool:
    """Whether this process is the one that writes files and speaks; true in a run of one process."""
    known: Any = rank_zero  # it keeps the rank on a function, which types do not show
    return not known.rank_zero_only.rank


def measuring_device(accelerator: str) -> torch.device | None:
    """The GPU on which this process may run a model before Lightning does; None if a run is to stay on the CPU."""
    if accelerator == "cpu" or not torch.cuda.is_available():
        return None
    local = os.environ.get("LOCAL_RANK") or os.environ.get("SLURM_LOCALID") or "0"
    return torch.device("cuda", int(local))


@contextmanager
def running_on(model: nn.Module, device: torch.device | None) -> Iterator[None]:
    """A model runs on `device` meanwhile, and then comes back; None: where it is."""
    home = next(model.parameters()).device
    if device is not None:
        model.to(device)
    try:
        yield
    finally:
        if device is not None:
            model.to(home)


def computes_in_bf16(cuda: bool) -> bool:
    """Whether the hardware computes in bf16: the GPU, or the CPU."""
    if cuda:
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    cpu = torch.cpu.get_capabilities()
    return bool(cpu.get("avx512_bf16") or cpu.get("amx_bf16"))


def make_strategy(name: StrategyName, devices: int) -> Any:
    """What `lightning.Trainer` is told; `devices` counts those of all nodes."""
    if name == "fsdp":
        return ShardedStrategy(data_parallel_size=devices, tensor_parallel_size=1, save_distributed_checkpoint=False)
    if name == "ddp" or devices > 1:
        return DDPStrategy(forward_sync_buffers=False)
    return "auto"


def shard(module: nn.Module, layers: Any, mesh: DeviceMesh, fill: Callable[[nn.Module], None] | None = None) -> None:
    """Spreads a module's parameters over a mesh, every layer a unit of its own, and what is left another one.

    The parameters are moved to their device and cut unit by unit, so no device ever holds the whole model. `fill` gives
    a unit its values just before, so neither does the host.
    """
    if isinstance(module, FSDPModule):  # validated before
        return
    for unit in (*layers, module):
        if fill is not None:
            fill(unit)
        fully_shard(unit, mesh=mesh)


def whole(tensor: torch.Tensor) -> torch.Tensor:
    """A tensor that may be spread over devices, in one piece; all devices must ask for it together."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def add_over_devices(tensor: torch.Tensor) -> int:
    """Turns a tensor that every device of the run has into the sum of them; returns how many devices there are."""
    devices = dist.get_world_size() if dist.is_initialized() else 1
    if devices > 1:
        dist.all_reduce(tensor)
    return devices


def mean_over_devices(tensor: torch.Tensor) -> torch.Tensor:
    """The mean of a tensor that every device of the run has."""
    total = tensor.clone()
    return total / add_over_devices(total)


class ShardedStrategy(ModelParallelStrategy):
    """FSDP2 whose checkpoints hold what the module calls trained, and nothing frozen is gathered for them."""

    def lightning_module_state_dict(self) -> dict[str, Any]:
        module: Any = self.lightning_module
        names = {id(parameter): name for name, parameter in module.named_parameters()}
        state = {names[id(parameter)]: whole(parameter.detach()) for _, parameter in module.trained()}
        return {name: tensor.cpu() for name, tensor in state.items()} if self.global_rank == 0 else {}
