"""The Lightning module that trains an expert with differential privacy: DP-SGD (Abadi et al. 2016, arXiv 1607.00133).

A step reads the units that were drawn, bounds what each adds to the gradient, and adds noise once:

    g = (sum_u c_u g_u + z N(0, C^2)) / E[U],   c_u = C / max(|g_u|, C), or 1 / (|g_u| + 0.01) and C = 1

The second is automatic clipping (Bu et al. 2022, arXiv 2206.07136). g_u is the gradient of the mean loss over all
windows of a unit; public windows, which are nobody's, are each bounded alike, so that they weigh as much as a unit. The
sum is divided by the expected number of units, not by how many were drawn, which would tell it.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch.nn.parallel import DistributedDataParallel

from flexmix.packing.units import UnitWindows
from flexmix.packing.windows import NO_LABEL, Batch
from trainers.distributed import add_over_devices, mean_over_devices
from trainers.expert.module import LitExpert
from trainers.expert.paired import pairs
from trainers.expert.unit_gradients import UnitGradients
from trainers.loop.finite import NotFiniteError, named_documents
from trainers.privacy.randomness import Secret
from trainers.privacy.sampling import PUBLIC, parts

STABLE = 0.01  # of automatic clipping


@dataclass(frozen=True)
class GradientNoise:
    """How gradients are bounded and noised."""

    secret: Secret
    multiplier: float  # z
    clip: float | None  # C; None: automatic
    expected_units: float
    windows_at_once: int  # on a device; more only where one unit has more

    def factors(self, norms_U: torch.Tensor) -> torch.Tensor:
        """What each unit's gradient is multiplied with, [U]."""
        if self.clip is None:
            return 1 / (norms_U + STABLE)
        return self.clip / norms_U.clamp(min=self.clip)

    def on(self, name: str, step: int, like: torch.Tensor) -> torch.Tensor:
        """The noise of a step on one parameter's gradient: the same on every device, and after a restart."""
        deviation = self.multiplier * (self.clip or 1.0) / self.expected_units
        return self.secret.normal(f"noise/{name}", step, like, deviation)


class LitPrivateExpert(LitExpert):
    """`LitExpert` whose batches are whole steps, of units; see `trainers.privacy.sampling.PoissonUnits`."""

    def __init__(self, *args: Any, noise: GradientNoise, windows: UnitWindows, **further: Any) -> None:
        super().__init__(*args, **further)
        self.automatic_optimization = False
        self.noise, self.windows = noise, windows

    def training_step(self, batch: Batch, _index: int) -> None:  # type: ignore[override]
        model = self.trainer.strategy.model
        if isinstance(model, DistributedDataParallel):  # Lightning sets it anew after each step
            model.require_backward_grad_sync = False  # gradients are summed here, once they are bounded
        optimizer: Any = self.optimizers()
        optimizer.zero_grad()
        logged = [self._add(part) for part in self._mine(batch)]
        self._finish()
        optimizer.step()
        scheduler: Any = self.lr_schedulers()
        scheduler.step()
        sums = torch.stack(logged).sum(0) if logged else torch.zeros(3)
        loss, norm, units = mean_over_devices(sums).tolist()
        if units:
            self.log_dict({"train/loss": loss / units, "train/unit_norm": norm / units, "train/units": units})

    def _mine(self, batch: Batch) -> Iterator[Batch]:
        """This device's parts of a step."""
        return parts(batch, self.noise.windows_at_once, self.global_rank, self.trainer.world_size)

    def _add(self, part: Batch) -> torch.Tensor:
        """Adds the bounded gradients of a part; returns sums over its units: loss, norm of gradients, and how many."""
        spans_U, own_U = _spans(part["unit"])
        length = part["labels"].shape[1]
        units = UnitGradients([(first * length, last * length) for first, last in spans_U])
        with units.recording(pairs(self.model)):
            total, loss = self.next_token(part)
            self.manual_backward(torch.stack([total, *self._terms(part).values()]).sum())
        labelled_B = (part["labels"] != NO_LABEL).sum(1)
        # the loss is a mean over all labelled positions, a unit's own a mean over its own
        scale_U = torch.stack([labelled_B.sum() / labelled_B[first:last].sum() for first, last in spans_U])
        norms_U = units.norms() * scale_U
        if not bool(norms_U.isfinite().all()):
            read = [(self.windows, window) for window in part["window"].tolist() if window != PUBLIC]
            where = f"reading {named_documents(read)} and public text" if read else "reading public text"
            raise NotFiniteError(f"step {self.global_step + 1}: a gradient that is not finite, {where}.")
        units.add_scaled(self.noise.factors(norms_U) * scale_U / self.noise.expected_units)
        return torch.stack([loss * own_U.sum(), norms_U[own_U].sum(), own_U.sum().float()])

    def _finish(self) -> None:
        """Sums over devices, then adds the noise."""
        for name, parameter in self.trained():
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
            add_over_devices(parameter.grad)
            parameter.grad += self.noise.on(name, self.global_step, parameter.grad).to(parameter.grad.dtype)


def _spans(unit_W: torch.Tensor) -> tuple[list[tuple[int, int]], torch.Tensor]:
    """The rows of each unit and of each public window, first and past-the-last, and which are the owner's [U] bool."""
    changes = torch.ones(len(unit_W), dtype=torch.bool)
    changes[1:] = (unit_W[1:] != unit_W[:-1]) | (unit_W[1:] == PUBLIC)
    starts = changes.nonzero()[:, 0].tolist()
    return list(zip(starts, [*starts[1:], len(unit_W)], strict=True)), (unit_W[starts] != PUBLIC)
