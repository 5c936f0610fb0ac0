"""NorMuon's matrices dealt out to three processes: the bits of one device, for a third of the work."""

from __future__ import annotations

from pathlib import Path
from unittest import mock

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import Shard, distribute_tensor

from trainers.dealing import devices_of, share
from trainers.loop import normuon
from trainers.loop.optimizer import OptimizerOptions

DEVICES = 3
SHAPES = [(7, 4), (4, 9), (1, 6), (12, 8)]  # no rows that three share evenly; of the one row two devices have none
OPTIONS = OptimizerOptions(lr=0.1, kind="normuon", weight_decay=0.1, row_lr=0.01)
STEPS = 3


def drawn(step: int) -> list[torch.Tensor]:
    dice = torch.Generator().manual_seed(step)
    return [torch.randn(shape, generator=dice) for shape in SHAPES]


def trained(spread: dist.DeviceMesh | None) -> tuple[list[torch.Tensor], list[torch.Tensor], int]:
    """Weights and squares of rows after three steps, whole, and how often this process did a matrix."""

    def placed(values: list[torch.Tensor]) -> list[torch.Tensor]:
        return values if spread is None else [distribute_tensor(value, spread, [Shard(0)]) for value in values]

    parameters = [nn.Parameter(value) for value in placed(drawn(0))]
    optimizer = OPTIONS.build((f"{k}.weight", parameter) for k, parameter in enumerate(parameters))
    with mock.patch.object(normuon, "polar", side_effect=normuon.polar) as polar:
        for step in range(1, 1 + STEPS):
            for parameter, grad in zip(parameters, placed(drawn(step)), strict=True):
                parameter.grad = grad
            optimizer.step()
    whole = [part.full_tensor() if spread else part for part in (parameter.detach() for parameter in parameters)]
    return whole, [optimizer.state[parameter]["row_squares"] for parameter in parameters], polar.call_count


def work(rank: int, store: Path, alone: list[torch.Tensor], squares: list[torch.Tensor]) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=DEVICES)
    for spread in (None, init_device_mesh("cpu", (DEVICES,))):
        weights, held, calls = trained(spread)
        assert calls == STEPS * (2 if rank == 0 else 1), "four matrices: two rounds, in the second one device has work"
        for ours, theirs in zip([*weights, *held], [*alone, *squares], strict=True):
            assert torch.equal(ours, theirs), (rank, spread, ours, theirs)
    told = torch.full((2,), float(rank))
    share(told, 1, like=told)
    assert devices_of(told) == DEVICES and told.tolist() == [1.0, 1.0]
    dist.barrier()  # nobody is gone while another one still sends
    dist.destroy_process_group()


@pytest.mark.slow
def test_three_devices_make_the_bits_of_one_and_each_does_its_share(tmp_path: Path) -> None:
    alone, squares, calls = trained(None)
    assert calls == STEPS * len(SHAPES) and not any(torch.equal(a, b) for a, b in zip(alone, drawn(0), strict=True))
    given = (tmp_path / "store", alone, squares)
    torch.multiprocessing.spawn(work, given, nprocs=DEVICES)  # type: ignore[no-untyped-call]
