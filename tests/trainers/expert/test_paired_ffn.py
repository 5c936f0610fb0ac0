"""The hand-written pair against autograd: value, every gradient, and what is never computed."""

from __future__ import annotations

import pytest
import torch
from torch.nn.functional import silu

from trainers.expert.paired_ffn import paired_ffn

D, F = 6, 10


def tensors(dtype: torch.dtype = torch.float64) -> list[torch.Tensor]:
    """x, p, and the weights of the frozen and of the trained network."""
    dice = torch.Generator().manual_seed(0)
    shapes = [(2, 5, D), (2, 5, 1), *2 * [(F, D), (F, D), (D, F)]]
    made = [torch.randn(*shape, generator=dice, dtype=torch.float64).to(dtype) for shape in shapes]
    made[1] = made[1].sigmoid()
    return [tensor.requires_grad_(not 2 <= i < 5) for i, tensor in enumerate(made)]


def plain(x: torch.Tensor, p: torch.Tensor, *weights: torch.Tensor) -> torch.Tensor:
    both = [(silu(x @ gate.T) * (x @ up.T)) @ down.T for gate, up, down in (weights[:3], weights[3:])]
    return (1 - p) * both[0] + p * both[1]


def ours(x: torch.Tensor, p: torch.Tensor, *weights: torch.Tensor) -> torch.Tensor:
    return paired_ffn(x, p, (weights[0], weights[1], weights[2]), (weights[3], weights[4], weights[5]))


def test_value_and_gradients_are_autograds() -> None:
    inputs = tensors()
    torch.testing.assert_close(ours(*inputs), plain(*inputs))
    wanted = [tensor for tensor in inputs if tensor.requires_grad]
    weight = torch.randn(2, 5, D, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    expected = torch.autograd.grad((plain(*inputs) * weight).sum(), wanted)
    torch.testing.assert_close(torch.autograd.grad((ours(*inputs) * weight).sum(), wanted), expected)
    assert torch.autograd.gradcheck(ours, inputs)


def test_a_second_backward_over_a_kept_graph_is_the_same() -> None:
    """Buffers that are overwritten on the way must not be those that are saved."""
    inputs = tensors()
    total = ours(*inputs).sum()
    wanted = [tensor for tensor in inputs if tensor.requires_grad]
    first = torch.autograd.grad(total, wanted, retain_graph=True)
    torch.testing.assert_close(torch.autograd.grad(total, wanted), first, rtol=0, atol=0)


def test_an_input_that_needs_no_gradient_spares_the_frozen_half(monkeypatch: pytest.MonkeyPatch) -> None:
    from trainers.expert import paired_ffn as module

    inputs = tensors()
    expected = torch.autograd.grad(ours(*inputs).sum(), inputs[5:])
    inputs[0].requires_grad_(False)
    calls = []
    inside = module._inside
    monkeypatch.setattr(module, "_inside", lambda *args: calls.append(1) or inside(*args))
    torch.testing.assert_close(torch.autograd.grad(ours(*inputs).sum(), inputs[5:]), expected)
    assert len(calls) == 1


@pytest.mark.parametrize("stored", [torch.float32, torch.bfloat16])
def test_mixed_precision_keeps_each_gradient_in_its_own_dtype(stored: torch.dtype) -> None:
    """Frozen weights in bf16 or fp32, trained ones in fp32, products in bf16 under autocast."""
    exact = tensors()
    expected = torch.autograd.grad(plain(*exact).sum(), [exact[i] for i in (0, 1, 5, 6, 7)])
    inputs = [tensor.detach().float().requires_grad_(tensor.requires_grad) for tensor in exact]
    for i in (2, 3, 4):
        inputs[i] = inputs[i].to(stored)
    with torch.autocast("cpu", torch.bfloat16):
        y = ours(*inputs)
    assert y.dtype == torch.bfloat16
    grads = torch.autograd.grad(y.sum(), [inputs[i] for i in (0, 1, 5, 6, 7)])
    for grad, reference in zip(grads, expected, strict=True):
        assert grad.dtype == torch.float32
        assert (grad - reference).norm() < 0.03 * reference.norm()
