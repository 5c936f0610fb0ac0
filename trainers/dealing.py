"""Work on whole tensors that is dealt out: of as many tensors as there are devices, each device does one.

Every device of a run has all of these tensors (`ddp`), or its rows of each (`fsdp`, as FSDP2 cuts them). All devices
call these functions together.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed.tensor import DTensor, Shard

Work = Callable[[int, torch.Tensor], torch.Tensor]  # the number of a tensor, and all of it -> one of the same shape


def devices_of(tensor: torch.Tensor) -> int:
    """How many devices hold a tensor, or rows of it."""
    if isinstance(tensor, DTensor):
        return tensor.device_mesh.size()
    return dist.get_world_size() if dist.is_initialized() else 1


def own_part(tensor: torch.Tensor) -> torch.Tensor:
    """What this device holds of a tensor, to read and to write."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def share(tensor: torch.Tensor, k: int, like: torch.Tensor) -> None:
    """Gives a tensor that every device has the values of device `k`, among the devices that hold `like`."""
    if devices_of(like) > 1:
        dist.broadcast(tensor, group=_group_of(like), group_src=k)


def dealt(tensors: Sequence[torch.Tensor], work: Work) -> Iterator[torch.Tensor]:
    """What `work` makes of each tensor, the k-th of them done by the k-th device alone.

    Args:
        tensors: at most as many as there are devices, and all of them spread in the same way. They may be written to.
        work: is given the number of a tensor, and all of it.

    Yields:
        Of each result what this device holds of the tensor.
    """
    if devices_of(tensors[0]) == 1:
        return (work(k, own_part(tensor)) for k, tensor in enumerate(tensors))
    if isinstance(tensors[0], DTensor):
        return _of_rows(tensors, work)
    return _of_copies(tensors, work)


def _of_copies(tensors: Sequence[torch.Tensor], work: Work) -> Iterator[torch.Tensor]:
    me = dist.get_rank()
    made = work(me, tensors[me]).contiguous() if me < len(tensors) else None
    for k, tensor in enumerate(tensors):
        result = made if made is not None and k == me else tensor.new_empty(tensor.shape)
        dist.broadcast(result, k)
        yield result


def _of_rows(tensors: Sequence[torch.Tensor], work: Work) -> Iterator[torch.Tensor]:
    group, devices = _group_of(tensors[0]), devices_of(tensors[0])
    me = dist.get_rank(group)
    blocks = [_padded(own_part(tensor), -(-len(tensor) // devices)) for tensor in tensors]
    mine = [torch.empty_like(blocks[me]) for _ in range(devices)] if me < len(tensors) else []
    _wait([
        dist.gather(block, mine if k == me else None, group=group, group_dst=k, async_op=True)
        for k, block in enumerate(blocks)
    ])  # fmt: skip
    if mine:
        made = work(me, torch.cat(mine)[: len(tensors[me])])
        mine = list(torch.split(_padded(made, devices * len(blocks[me])), len(blocks[me])))
    _wait([
        dist.scatter(block, mine if k == me else None, group=group, group_src=k, async_op=True)
        for k, block in enumerate(blocks)
    ])  # fmt: skip
    return (block[: len(own_part(tensor))] for block, tensor in zip(blocks, tensors, strict=True))


def _padded(tensor: torch.Tensor, rows: int) -> torch.Tensor:
    """With rows of zeros up to so many."""
    missing = tensor.new_zeros(rows - len(tensor), *tensor.shape[1:])
    return torch.cat([tensor, missing])


def _wait(works: list[Any]) -> None:
    for one in works:
        one.wait()


def _group_of(tensor: torch.Tensor) -> dist.ProcessGroup | None:
    """The devices that hold a tensor; None for all of the run."""
    if not isinstance(tensor, DTensor):
        return None
    assert tensor.placements == (Shard(0),), f"spread as {tensor.placements}, not by rows"
    return tensor.device_mesh.get_group()
