"""Adafactor on parameters that are cut by rows, against PyTorch's own; on two devices in test_devices.py."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.tensor import DTensor, Shard, distribute_tensor

from trainers.adafactor import ShardedAdafactor
from trainers.optim import OptimizerOptions


@pytest.fixture
def mesh() -> Iterator[DeviceMesh]:
    """One device, which holds all rows."""
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield init_device_mesh("cpu", (1,))
    dist.destroy_process_group()


def test_steps_and_state_are_those_of_pytorch(mesh: DeviceMesh) -> None:
    dice = torch.Generator().manual_seed(0)
    values = {
        name: torch.randn(size, generator=dice)
        for name, size in {"expert.weight": (6, 4), "row_D": (4,), "bias": (1,)}.items()
    }
    whole = {name: nn.Parameter(value.clone()) for name, value in values.items()}
    cut = {name: nn.Parameter(distribute_tensor(value, mesh, [Shard(0)])) for name, value in values.items()}
    options = OptimizerOptions(lr=0.3, kind="adafactor", weight_decay=0.1, row_lr=0.01)
    expected, ours = options.build(whole.items()), options.build(cut.items())
    assert isinstance(ours, ShardedAdafactor) and not isinstance(expected, ShardedAdafactor)
    for _ in range(5):
        for name, value in values.items():
            grad = torch.randn(value.shape, generator=dice) * 1e-3
            whole[name].grad, cut[name].grad = grad, distribute_tensor(grad, mesh, [Shard(0)])
        expected.step(), ours.step()
        for name in values:
            torch.testing.assert_close(full(cut[name]), whole[name].detach())
            held, wanted = ours.state[cut[name]], expected.state[whole[name]]
            assert held.keys() == wanted.keys()
            for key, value in wanted.items():
                torch.testing.assert_close(full(held[key]), value)


def full(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.full_tensor().detach() if isinstance(tensor, DTensor) else tensor
