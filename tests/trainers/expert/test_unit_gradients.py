"""Norms and sums of gradients by unit, against a loop over the units."""

from __future__ import annotations

import pytest
import torch
from transformers import Olmo2Config, Olmo2ForCausalLM, PreTrainedModel

from trainers.expert.module import own_vs_public_loss
from trainers.expert.paired import PairOptions, pair, pairs, router_logits, trainable_parameters
from trainers.expert.unit_gradients import UnitGradients
from trainers.loop.next_token_loss import NextToken

T = 16
UNITS = [2, 1, 3]  # windows of each unit; two more windows belong to nobody


def paired(rank: int | None = None, bias: float | None = None, hidden: int = 24, inner: int = 40) -> PreTrainedModel:
    torch.manual_seed(0)
    config = Olmo2Config(
        vocab_size=64, hidden_size=hidden, intermediate_size=inner, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=2, max_position_embeddings=64,
    )  # fmt: skip
    model = Olmo2ForCausalLM(config)
    rows = [0.3 * torch.randn(hidden) for _ in range(4)]
    model = pair(model, rows[:2], rows[2:], PairOptions(rank=rank, router_bias=bias))
    with torch.no_grad():
        for _, parameter in trainable_parameters(model):  # no part of a low-rank product may be zero
            parameter.add_(0.05 * torch.randn_like(parameter))
    return model


def batch() -> dict[str, torch.Tensor]:
    ids = torch.randint(0, 64, (sum(UNITS) + 2, T + 1), generator=torch.Generator().manual_seed(1))
    places = torch.arange(T).expand(len(ids), T)
    own = torch.arange(len(ids)) < sum(UNITS)
    return {"input_ids": ids[:, :-1], "labels": ids[:, 1:], "position_ids": places, "own": own}


def rows_of(whole: dict[str, torch.Tensor], rows: slice) -> dict[str, torch.Tensor]:
    return {name: part[rows] for name, part in whole.items()}


def summed_loss(model: PreTrainedModel, part: dict[str, torch.Tensor]) -> torch.Tensor:
    """Cross-entropy, router z-loss and own against public, summed over tokens, so that windows do not mix."""
    count = part["labels"].numel()
    loss, _ = NextToken(model)(part)
    logits = router_logits(model)
    own = own_vs_public_loss(logits[..., 1] - logits[..., 0], part["own"], torch.ones(len(part["own"])))
    return count * (loss + 0.1 * logits.logsumexp(-1).square().mean() + 0.1 * own.mean())


def gradients(model: PreTrainedModel, loss: torch.Tensor) -> list[torch.Tensor]:
    return list(torch.autograd.grad(loss, [parameter for _, parameter in trainable_parameters(model)]))


def bounds() -> list[tuple[int, int]]:
    ends = torch.tensor(UNITS).cumsum(0).tolist()
    return list(zip([0, *ends[:-1]], ends, strict=True))


@pytest.mark.parametrize("rank", [None, 3])
@pytest.mark.parametrize("bias", [None, -0.2])
@pytest.mark.parametrize(("hidden", "inner"), [(24, 40), (64, 96)], ids=["of itself", "of products of positions"])
def test_norms_and_sums_are_those_of_a_loop(rank: int | None, bias: float | None, hidden: int, inner: int) -> None:
    model, whole = paired(rank, bias, hidden, inner), batch()
    expected_norms, expected = [], [torch.zeros_like(parameter) for _, parameter in trainable_parameters(model)]
    factors = torch.tensor([0.5, 2.0, 0.25])
    for (first, last), factor in zip(bounds(), factors, strict=True):
        parts = gradients(model, summed_loss(model, rows_of(whole, slice(first, last))))
        expected_norms.append(torch.cat([part.flatten() for part in parts]).norm())
        expected = [total + factor * part for total, part in zip(expected, parts, strict=True)]
    public = gradients(model, summed_loss(model, rows_of(whole, slice(sum(UNITS), None))))
    expected = [total + 0.7 * part for total, part in zip(expected, public, strict=True)]

    units = UnitGradients([(first * T, last * T) for first, last in bounds()])
    with units.recording(pairs(model)):
        summed_loss(model, whole).backward()
    assert all(parameter.grad is None for _, parameter in trainable_parameters(model))
    torch.testing.assert_close(units.norms(), torch.stack(expected_norms), rtol=1e-5, atol=0)
    units.add_scaled(factors, rest=0.7)
    for (name, parameter), total in zip(trainable_parameters(model), expected, strict=True):
        torch.testing.assert_close(parameter.grad, total, rtol=1e-4, atol=2e-5 * float(total.abs().max()), msg=name)


def test_two_recordings_add_up_and_none_is_left() -> None:
    model, whole = paired(), batch()
    units = UnitGradients([(0, 6 * T)])
    with units.recording(pairs(model)):
        summed_loss(model, whole).backward()
    units.add_scaled(torch.ones(1))
    once = [parameter.grad.clone() for _, parameter in trainable_parameters(model) if parameter.grad is not None]
    with units.recording(pairs(model)):
        summed_loss(model, whole).backward()
    units.add_scaled(torch.ones(1))
    for before, (_, parameter) in zip(once, trainable_parameters(model), strict=True):
        torch.testing.assert_close(parameter.grad, 2 * before)
    assert all(layer.units is None for layer in pairs(model))
