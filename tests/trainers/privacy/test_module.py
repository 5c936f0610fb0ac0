"""A step's gradient: each unit's mean loss, bounded, summed whatever the parts, and noise once."""

from __future__ import annotations

from typing import Any

import pytest
import torch

pytest.importorskip("cryptography", reason="the extra privacy is not installed")

from flexmix.packing.units import UnitWindows
from flexmix.packing.windows import NO_LABEL
from tests.flexmix.packing.test_loaders import shard_of
from tests.trainers.expert.test_unit_gradients import UNITS, batch, bounds, gradients, paired, rows_of
from trainers.expert.module import LitExpert
from trainers.expert.paired import trainable_parameters
from trainers.loop.finite import NotFiniteError
from trainers.loop.module import LossOptions
from trainers.loop.optimizer import OptimizerOptions
from trainers.loop.trainer import recompute_activations
from trainers.privacy.module import STABLE, GradientNoise, LitPrivateExpert
from trainers.privacy.randomness import Secret
from trainers.privacy.sampling import PUBLIC, parts

SECRET = Secret(bytes(range(32)))
LOSS = LossOptions(lm_z=1e-3, router_z=0.1, own_vs_public=0.1)
EXPECTED = 2.5


def step() -> dict[str, torch.Tensor]:
    """Three units of two, one and three windows, and two public windows; a unit's last window is padded."""
    whole = batch()
    unit = torch.repeat_interleave(torch.tensor([0, 1, 2]), torch.tensor(UNITS))
    whole["labels"] = whole["labels"].clone()
    whole["labels"][1, 5:] = NO_LABEL
    return whole | {
        "unit": torch.cat([unit, torch.full((2,), PUBLIC)]),
        "window": torch.arange(8),
        "balance": torch.full((8,), 0.8),
    }


def lit(kind: type[LitExpert], model: Any, **further: Any) -> Any:
    if kind is LitPrivateExpert:
        further["windows"] = UnitWindows(shard_of([[1] * 40] * 8), 16, where="notes.csv")
    made = kind(model, OptimizerOptions(lr=1e-3), LOSS, 10, [], **further)
    made.manual_backward = lambda loss: loss.backward()  # type: ignore[method-assign, assignment]
    return made


def expected_sum(clip: float | None) -> list[torch.Tensor]:
    """By autograd, unit by unit."""
    model, whole = paired(), step()
    plain = lit(LitExpert, model)
    windows = [slice(*span) for span in bounds()] + [slice(6, 7), slice(7, 8)]
    total = [torch.zeros_like(parameter) for _, parameter in trainable_parameters(model)]
    for rows in windows:
        part = rows_of(whole, rows)
        loss = torch.stack([plain.next_token(part)[0], *plain._terms(part).values()]).sum()
        found = gradients(model, loss)
        norm = torch.cat([one.flatten() for one in found]).norm()
        factor = 1 / (norm + STABLE) if clip is None else min(1.0, clip / float(norm))
        total = [before + factor * one / EXPECTED for before, one in zip(total, found, strict=True)]
    return total


@pytest.mark.parametrize("recomputed", [False, True])
@pytest.mark.parametrize("at_once", [3, 100])
@pytest.mark.parametrize("clip", [None, 0.3])
def test_the_sum_is_that_of_a_loop_over_units(clip: float | None, at_once: int, recomputed: bool) -> None:
    model = paired()
    if recomputed:
        recompute_activations(model.train())
    private = lit(LitPrivateExpert, model, noise=GradientNoise(SECRET, 1.0, clip, EXPECTED, at_once))
    logged = sum(private._add(part) for part in parts(step(), at_once))
    assert logged[2] == len(UNITS)
    for (name, parameter), expected in zip(trainable_parameters(model), expected_sum(clip), strict=True):
        assert parameter.grad is not None, name
        torch.testing.assert_close(parameter.grad, expected, rtol=1e-4, atol=1e-7)


def test_a_gradient_that_is_not_finite_stops_the_run_and_names_documents() -> None:
    model = paired()
    private = lit(LitPrivateExpert, model, noise=GradientNoise(SECRET, 1.0, None, EXPECTED, 100))
    with torch.no_grad():
        next(private.trained().__iter__())[1].fill_(float("inf"))
    with pytest.raises(NotFiniteError, match=r"step 1: .*reading documents 1, 2, 3 of notes\.csv"):
        private._add(step())


def test_noise_is_that_of_the_step_and_in_proportion_to_the_bound() -> None:
    like = torch.zeros(400, 300)
    noise = GradientNoise(SECRET, 2.0, 0.5, 10.0, 4)
    first = noise.on("a", 3, like)
    assert float(first.std()) == pytest.approx(2.0 * 0.5 / 10, rel=0.02)
    assert torch.equal(first, noise.on("a", 3, like))
    assert not torch.equal(first, noise.on("a", 4, like)) and not torch.equal(first, noise.on("b", 3, like))
    automatic = GradientNoise(SECRET, 2.0, None, 10.0, 4)
    assert float(automatic.on("a", 3, like).std()) == pytest.approx(0.2, rel=0.02)
    norms = torch.tensor([0.0, 0.1, 1.0, 1e6])
    assert (noise.factors(norms) * norms <= 0.5).all() and (automatic.factors(norms) * norms <= 1).all()


def test_a_step_in_which_nobody_was_drawn_is_noise_alone() -> None:
    model = paired()
    private = lit(LitPrivateExpert, model, noise=GradientNoise(SECRET, 1.0, None, EXPECTED, 4))
    private._finish()
    for name, parameter in private.trained():
        assert torch.equal(parameter.grad, private.noise.on(name, 0, parameter))
