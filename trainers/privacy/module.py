"""The Lightning module that trains an expert with a guarantee, by DP-SGD (Abadi et al. 2016, arXiv 1607.00133).

    g = (sum over drawn units of clip(g_u) + z C noise) / expected units  +  share of public text, which is nobody's

A unit's gradient g_u is that of its mean loss over the positions that a step reads of it, through the expert, its
router row and its bias, and is clipped as one. Public windows are clipped in the same way, each for itself, so that
both kinds of text keep their proportion, and take no noise.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import torch

from flexmix.packing.windows import NO_LABEL, Batch
from trainers.expert.module import LitExpert
from trainers.expert.paired import pairs
from trainers.expert.unit_gradients import Span, UnitGradients
from trainers.privacy.randomness import Secret
from trainers.privacy.sampling import PUBLIC, parts

Clipping = Literal["flat", "automatic"]
STABLE = 0.01  # added to a norm in automatic clipping, as a share of the clip
SLACK = 1e-3  # how far the norm of a clipped gradient stays below the clip, for rounding


@dataclass(frozen=True)
class Mechanism:
    """What is done to the gradient of each step."""

    noise: float  # z
    clip: float  # C
    expected_units: float  # q U
    public_share: float = 0.0  # of public text, beside own text's one minus it
    clipping: Clipping = "flat"  # automatic: every gradient to the norm C (Bu et al. 2022, arXiv 2206.07136)

    def factors(self, norms_U: torch.Tensor) -> torch.Tensor:
        """What each unit's gradient is multiplied by, so that none is longer than C."""
        clip = self.clip * (1 - SLACK)
        if self.clipping == "automatic":
            return clip / (norms_U + STABLE * self.clip)
        return (clip / norms_U.clamp(min=1e-30)).clamp(max=1)


class LitPrivateExpert(LitExpert):
    """Trains an expert on steps of `PoissonUnits.batch`; `windows` at once, whole units.

    The optimiser steps by hand, once a step, whatever the number of parts.
    """

    def __init__(self, *args: Any, mechanism: Mechanism, secret: Secret, windows: int, **options: Any) -> None:
        super().__init__(*args, **options)
        self.automatic_optimization = False
        self.mechanism, self.secret, self.windows = mechanism, secret, windows

    def training_step(self, batch: Batch, _index: int) -> None:
        step = self.global_step
        optimizer: Any = self.optimizers()
        optimizer.zero_grad(set_to_none=True)
        units, public = int((batch["own"]).sum() > 0), (batch["unit"] == PUBLIC).sum()
        norms: list[torch.Tensor] = []
        for part in parts(batch, self.windows, self.global_rank, self.trainer.world_size):
            norms.append(self._accumulate(part, int(public)))
        self._privatise(step)
        optimizer.step()
        schedule: Any = self.lr_schedulers()
        schedule.step()
        if norms and units:
            norms_U = torch.cat(norms)
            self.log("train/clipped", (norms_U > self.mechanism.clip).float().mean())

    def _accumulate(self, part: Batch, public: int) -> torch.Tensor:
        """Adds the clipped gradients of a part's units to the parameters' grad; returns the norms of the own ones."""
        length = part["labels"].shape[1]
        spans, own, scored = _spans(part["unit"], part["labels"])
        gradients = UnitGradients([(first * length, last * length) for first, last in spans])
        with gradients.recording(pairs(self.model)):
            total, _ = self.next_token(part)
            loss = torch.stack([total, *self._terms(part | {"balance": torch.ones(len(part["own"]))}).values()]).sum()
            self.manual_backward(loss)
        means_U = scored.sum() / scored.clamp(min=1)  # from the part's mean loss to that of a unit
        norms_U = gradients.norms() * means_U
        share = self.mechanism.public_share
        weights_U = torch.where(own, 1 / self.mechanism.expected_units, share / (1 - share) / max(1, public))
        gradients.add_scaled(self.mechanism.factors(norms_U) * means_U * weights_U * (scored > 0))
        return norms_U[own]

    def _privatise(self, step: int) -> None:
        """Adds noise, of the same deviation in all coordinates, and sums over devices."""
        deviation = self.mechanism.noise * self.mechanism.clip / self.mechanism.expected_units
        for name, parameter in self.trained():
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
            if self.trainer.world_size > 1:
                torch.distributed.all_reduce(parameter.grad)
            parameter.grad += self.secret.normal(f"noise/{name}", step, parameter.grad, deviation)


def _spans(unit_W: torch.Tensor, labels_WT: torch.Tensor) -> tuple[list[Span], torch.Tensor, torch.Tensor]:
    """The windows [first, last) of each unit, whether it is an owner's, and how many of its positions are scored.

    A public window is a span of its own.
    """
    spans: list[Span] = []
    for row, unit in enumerate(unit_W.tolist()):
        if row and unit != PUBLIC and unit == int(unit_W[row - 1]):
            spans[-1] = (spans[-1][0], row + 1)
        else:
            spans.append((row, row + 1))
    scored_W = (labels_WT != NO_LABEL).sum(1)
    scored = torch.stack([scored_W[first:last].sum() for first, last in spans])
    return spans, unit_W[[first for first, _ in spans]] != PUBLIC, scored
