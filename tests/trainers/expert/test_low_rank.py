"""Low-rank experts: the mixture is that of the exported weights, and what is trained is thin."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from flexo.errors import InputError
from merge.formats.anchor_folder import open_anchor
from merge.formats.expert_file import open_expert
from trainers.expert.low_rank import LowRankExpert
from trainers.expert.paired import PairOptions
from trainers.expert.paired_ffn import paired_ffn
from trainers.expert.train import Result

D, F, RANK = 6, 10, 3


def public() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    dice = torch.Generator().manual_seed(0)
    gate, up, down = (torch.randn(*shape, generator=dice).double() for shape in ((F, D), (F, D), (D, F)))
    return gate, up, down


def test_it_starts_as_the_public_network() -> None:
    for ours, theirs in zip(LowRankExpert(public(), RANK).weights(public()), public(), strict=True):
        assert torch.equal(ours, theirs.float())


def test_value_and_gradients_are_those_of_the_whole_weights() -> None:
    torch.manual_seed(0)
    expert = LowRankExpert(public(), RANK).double()
    with torch.no_grad():
        for b in expert.B:
            b.normal_()
    whole = [weight + b @ a for weight, a, b in zip(public(), expert.A, expert.B, strict=True)]
    dice = torch.Generator().manual_seed(1)
    x = torch.randn(2, 5, D, generator=dice).double().requires_grad_()
    p = torch.rand(2, 5, 1, generator=dice).double().requires_grad_()
    ours = expert.mixture(x, p, public())
    theirs = paired_ffn(x, p, public(), (whole[0], whole[1], whole[2]))
    torch.testing.assert_close(ours, theirs)
    wanted = [x, p, *expert.parameters()]
    torch.testing.assert_close(
        torch.autograd.grad(ours.square().sum(), wanted), torch.autograd.grad(theirs.square().sum(), wanted)
    )


def test_the_file_is_an_ordinary_expert_of_that_rank(train: Callable[..., Result], small_anchor: Path) -> None:
    result = train("math", model=PairOptions(rank=2))
    losses = result.header.training.losses
    assert losses.own_before is not None and losses.own_after is not None
    assert losses.own_after < losses.own_before - 0.02
    expert = open_expert(result.path)
    anchor = open_anchor(small_anchor)
    for n in range(2):
        for part in ("gate_proj", "up_proj", "down_proj"):
            delta = expert.tensor(f"layers.{n}.{part}.weight") - anchor.weights.tensor(
                f"model.layers.{n}.mlp.{part}.weight"
            )
            values = torch.linalg.svdvals(delta.double())
            assert values[0] > 1e-4 and values[2] < 1e-5 * values[0] + 1e-6


def test_a_rank_of_nothing_is_refused() -> None:
    with pytest.raises(InputError, match=r"model\.rank=0: expected a positive number"):
        PairOptions(rank=0)
