"""A loss, a gradient or a weight that is not finite stops a run at once: where it arose, and in which documents."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor

from flexmix.packing.windows import Batch, Packed
from flexo.errors import InputError

Window = tuple[Packed, int]  # what it is of, and its number there

SHOWN = 12  # documents that a message names, at most


class NotFiniteError(InputError):
    """Training came to a value that is not finite. What was saved before is good."""


def finite_weights(trained: Iterable[tuple[str, nn.Parameter]]) -> bool:
    """Whether this device's part of all that is trained is finite."""
    return all(_is_finite(part.detach()) for _, part in trained)


def where_it_arose(next_token: nn.Module, batches: Sequence[Batch], windows: Sequence[Sequence[Window]]) -> str:
    """The first module, on the way forward, whose output is not finite, and the documents that it was reading.

    The parts of the step are computed once more: row by row, or as they were if the weights are spread over devices,
    which have to compute together. "" if all is finite.

    Args:
        next_token: the `trainers.loop.next_token_loss.NextToken` of the run.
        batches: the parts of the step.
        windows: what is in each of their rows, as `TrainLoader.windows` says.
    """
    together = isinstance(next_token, FSDPModule)
    first, bad = "", list[Window]()
    for batch, read in zip(batches, windows, strict=True):
        for rows in [slice(None)] if together else [slice(n, n + 1) for n in range(len(read))]:
            module = _first_module(next_token, {name: value[rows] for name, value in batch.items()})
            first = first or module
            bad += read[rows] if module else []
    return f"the output of {first}, on {named_documents(bad)}" if first else ""


def not_finite_gradient(trained: Iterable[tuple[str, nn.Parameter]]) -> str:
    """The last parameter on the way forward, so the first on the way back, whose gradient is not finite."""
    bad = [name for name, part in trained if part.grad is not None and not _is_finite(part.grad)]
    return f"the gradient of {bad[-1]}" if bad else "the norm, of a gradient too large for float32"


def named_documents(windows: Sequence[Window]) -> str:
    """`documents 4, 17 and 18 of math.jsonl`, counted from 1 and without empty ones, source by source."""
    found: dict[str, set[int]] = {}
    for read, window in windows:
        found.setdefault(read.where, set()).update((read.documents(window) + 1).tolist())
    return " and ".join(f"documents {_listed(sorted(numbers))} of {where}" for where, numbers in found.items())


def _is_finite(tensor: torch.Tensor) -> bool:
    """Of this device's part, so that devices need not ask together."""
    return bool((tensor.to_local() if isinstance(tensor, DTensor) else tensor).isfinite().all())


def _listed(numbers: Sequence[int]) -> str:
    more = f" and {len(numbers) - SHOWN} more" if len(numbers) > SHOWN else ""
    return ", ".join(map(str, numbers[:SHOWN])) + more


def _first_module(next_token: nn.Module, batch: Mapping[str, torch.Tensor]) -> str:
    """The name of the first module whose output is not finite; "the loss" if that alone is not; "" if all is finite."""
    with torch.no_grad(), _watched(next_token) as found:
        if isinstance(next_token, FSDPModule) or bool((batch["labels"] >= 0).any()):
            loss, _ = next_token(batch)
            if not bool(loss.isfinite()):
                found.append("the head")
    return found[0] if found else ""


@contextmanager
def _watched(root: nn.Module) -> Iterator[list[str]]:
    """Collects the names of modules as they put out something that is not finite."""
    found: list[str] = []

    def watch(name: str) -> Any:
        def look(_module: nn.Module, _inputs: Any, output: Any) -> None:
            tensor = output[0] if isinstance(output, tuple) else output
            if isinstance(tensor, torch.Tensor) and tensor.is_floating_point() and not bool(tensor.isfinite().all()):
                found.append(name.removeprefix("model."))

        return look

    handles = [module.register_forward_hook(watch(name)) for name, module in root.named_modules() if name]
    try:
        yield found
    finally:
        for handle in handles:
            handle.remove()
