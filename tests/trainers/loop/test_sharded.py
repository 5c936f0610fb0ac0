"""Adafactor and NorMuon on parameters cut by rows, against whole ones; on two devices in test_distributed.py."""

from __future__ import annotations

from collections.abc import Iterator
from copy import deepcopy

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_optimizer_state_dict,
    set_model_state_dict,
    set_optimizer_state_dict,
)
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, Shard, distribute_tensor

from trainers.loop.optimizer import Kind, OptimizerOptions
from trainers.loop.sharded_adafactor import ShardedAdafactor


@pytest.fixture
def mesh() -> Iterator[DeviceMesh]:
    """One device, which holds all rows."""
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield init_device_mesh("cpu", (1,))
    dist.destroy_process_group()


@pytest.mark.parametrize("kind", ["adafactor", "normuon"])
def test_steps_and_state_are_those_of_whole_parameters(mesh: DeviceMesh, kind: Kind) -> None:
    dice = torch.Generator().manual_seed(0)
    values = {
        name: torch.randn(size, generator=dice)
        for name, size in {"expert.weight": (6, 4), "row_D": (4,), "bias": (1,)}.items()
    }
    whole = {name: nn.Parameter(value.clone()) for name, value in values.items()}
    cut = {name: nn.Parameter(distribute_tensor(value, mesh, [Shard(0)])) for name, value in values.items()}
    options = OptimizerOptions(lr=0.3, kind=kind, weight_decay=0.1, row_lr=0.01)
    expected, ours = options.build(whole.items()), options.build(cut.items())
    assert isinstance(ours, ShardedAdafactor) is (kind == "adafactor") and not isinstance(expected, ShardedAdafactor)
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


@pytest.mark.parametrize("kind", ["adafactor", "normuon"])
def test_the_state_goes_through_a_checkpoint(mesh: DeviceMesh, kind: Kind) -> None:
    model = nn.Linear(4, 6)
    fully_shard(model, mesh=mesh)

    def steps(optimizer: torch.optim.Optimizer, n: int) -> None:
        for _ in range(n):
            model(torch.eye(4)).square().sum().backward()
            optimizer.step(), optimizer.zero_grad()

    options, whole = OptimizerOptions(lr=0.3, kind=kind), StateDictOptions(full_state_dict=True)
    first = options.build(model.named_parameters())
    steps(first, 3)
    weights = {name: full(value).clone() for name, value in model.state_dict().items()}
    saved = deepcopy(get_optimizer_state_dict(model, first, options=whole))
    steps(first, 2)
    expected = [full(parameter).clone() for parameter in model.parameters()]

    set_model_state_dict(model, weights, options=whole)
    again = options.build(model.named_parameters())
    set_optimizer_state_dict(model, again, saved, options=whole)
    steps(again, 2)
    for parameter, value in zip(model.parameters(), expected, strict=True):
        assert torch.equal(full(parameter), value)


def full(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.full_tensor().detach() if isinstance(tensor, DTensor) else tensor
