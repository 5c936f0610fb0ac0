"""The chunked loss against PyTorch's cross-entropy over whole logits: value, gradients, memory."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F  # noqa: N812 - the name everyone uses

from flexmix.packing.windows import NO_LABEL
from trainers.loop.next_token_loss import linear_cross_entropy


def whole(
    h: torch.Tensor, weight_VD: torch.Tensor, labels: torch.Tensor, z_weight: float
) -> tuple[torch.Tensor, torch.Tensor]:
    logits_NV = (h @ weight_VD.T).flatten(0, -2).float()
    scored = labels.flatten() != NO_LABEL
    normaliser_N = logits_NV.logsumexp(-1)[scored]
    loss = F.cross_entropy(logits_NV, labels.flatten(), ignore_index=NO_LABEL)
    return loss + z_weight * normaliser_N.square().mean(), loss


def inputs(dtype: torch.dtype = torch.float32, padding: int = 0) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    dice = torch.Generator().manual_seed(0)
    h_BTD = torch.randn(3, 11, 8, generator=dice).to(dtype).requires_grad_()
    weight_VD = torch.randn(50, 8, generator=dice).to(dtype).requires_grad_()
    labels_BT = torch.randint(50, (3, 11), generator=dice)
    labels_BT[-1, 11 - padding :] = NO_LABEL
    return h_BTD, weight_VD, labels_BT


@pytest.mark.parametrize("rows", [1, 7, 33, 1000, None])
@pytest.mark.parametrize(("z_weight", "padding"), [(0.0, 0), (1e-2, 0), (1e-2, 5)])
def test_value_and_gradients_are_those_of_whole_logits(rows: int | None, z_weight: float, padding: int) -> None:
    h, weight, labels = inputs(padding=padding)
    expected, expected_loss = whole(h, weight, labels, z_weight)
    total, loss = linear_cross_entropy(h, weight, labels, z_weight, rows)
    torch.testing.assert_close(loss, expected_loss, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(total, expected, rtol=1e-6, atol=1e-6)
    assert not loss.requires_grad
    ours = torch.autograd.grad(3 * total, (h, weight))
    theirs = torch.autograd.grad(3 * expected, (h, weight))
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)


def test_a_frozen_output_embedding_gets_no_gradient() -> None:
    h, weight, labels = inputs()
    weight.requires_grad_(False)
    total, _ = linear_cross_entropy(h, weight, labels, 1e-2, 7)
    total.backward()
    assert weight.grad is None and h.grad is not None
    torch.testing.assert_close(h.grad, torch.autograd.grad(whole(h, weight, labels, 1e-2)[0], h)[0])


@pytest.mark.parametrize("autocast", [False, True])
def test_bf16_is_as_near_as_whole_logits_in_bf16(autocast: bool) -> None:
    """Under autocast from fp32 weights, and with weights stored in bf16."""
    exact = whole(*inputs(), 1e-2)[0]
    h, weight, labels = inputs(torch.float32 if autocast else torch.bfloat16)
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        total, _ = linear_cross_entropy(h, weight, labels, 1e-2, 7)
        theirs = whole(h, weight, labels, 1e-2)[0]
    assert total.dtype == torch.float32
    assert abs(total - exact) < 2 * abs(theirs - exact) + 1e-2
    grad_h, grad_weight = torch.autograd.grad(total, (h, weight))
    assert (grad_h.dtype, grad_weight.dtype) == (h.dtype, weight.dtype)
    for ours, reference in zip((grad_h, grad_weight), torch.autograd.grad(theirs, (h, weight)), strict=True):
        torch.testing.assert_close(ours, reference, rtol=0.05, atol=2e-3)


def test_nothing_is_computed_for_gradients_nobody_asks_for() -> None:
    h, weight, labels = inputs()
    with torch.no_grad():
        total, _ = linear_cross_entropy(h, weight, labels)
    assert not total.requires_grad


def test_huge_logits_stay_finite() -> None:
    h, weight, labels = inputs()
    total, _ = linear_cross_entropy(h * 1e4, weight, labels)
    assert total.isfinite() and torch.autograd.grad(total, h)[0].isfinite().all()


def test_a_batch_without_labels_is_our_own_mistake() -> None:
    h, weight, labels = inputs()
    with pytest.raises(AssertionError, match="without a scored position"):
        linear_cross_entropy(h, weight, torch.full_like(labels, NO_LABEL))
