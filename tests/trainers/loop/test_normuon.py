"""NorMuon against its formula, with singular values in place of iterations, and AdamW beside it against PyTorch's."""

from __future__ import annotations

import math
from copy import deepcopy

import pytest
import torch
from torch import nn

from trainers.loop.normuon import polar
from trainers.loop.optimizer import OptimizerOptions

NORMUON = OptimizerOptions(lr=0.1, kind="normuon", weight_decay=0.1, row_lr=0.01, rest_lr=0.02)


def stepped(options: OptimizerOptions, named: dict[str, nn.Parameter], seed: int = 0) -> torch.optim.Optimizer:
    """Three steps with random gradients."""
    optimizer, dice = options.build(named.items()), torch.Generator().manual_seed(seed)
    for _ in range(3):
        for parameter in named.values():
            parameter.grad = torch.randn(parameter.shape, generator=dice) * 1e-3
        optimizer.step()
    return optimizer


@pytest.mark.parametrize("shape", [(12, 8), (8, 12), (8, 8)])
def test_steps_on_a_matrix_are_those_of_the_paper(shape: tuple[int, int]) -> None:
    """By singular values in place of iterations: where those are near 1, rows of one size make the rest the same."""
    start = torch.randn(shape, generator=torch.Generator().manual_seed(1))
    ours, theirs = nn.Parameter(start.clone()), start.clone()
    stepped(NORMUON, {"expert.weight": ours})
    held, squares, dice = torch.zeros(shape), torch.zeros(shape[0], 1), torch.Generator().manual_seed(0)
    for _ in range(3):
        grad = torch.randn(shape, generator=dice) * 1e-3
        held = 0.8 * held + 0.2 * grad
        u, values, v = torch.linalg.svd(0.8 * held + 0.2 * grad, full_matrices=False)
        q = u @ torch.diag(quintic(values / values.norm())) @ v
        squares = 0.95 * squares + 0.05 * q.square().mean(1, keepdim=True)
        q = q / squares.sqrt()
        theirs = theirs * (1 - 0.1 * 0.1) - 0.2 * 0.1 * math.sqrt(q.numel()) / q.norm() * q
    assert (ours - theirs).norm() < 0.02 * (theirs - start).norm(), "bf16 rounds within the iterations"


def quintic(values: torch.Tensor) -> torch.Tensor:
    """Singular values after five iterations, each by itself."""
    for _ in range(5):
        values = 3.4445 * values - 4.7750 * values**3 + 2.0315 * values**5
    return values


def test_every_row_moves_as_far_as_the_others_however_large_its_gradient_is() -> None:
    weight = nn.Parameter(torch.zeros(16, 4))
    weight.grad = torch.randn(16, 4, generator=torch.Generator().manual_seed(0)) * torch.logspace(-3, 0, 16)[:, None]
    NORMUON.build([("expert.weight", weight)]).step()
    torch.testing.assert_close(weight.detach().norm(dim=1), torch.full((16,), 0.2 * 0.1 * 4**0.5), rtol=1e-4, atol=0)


def test_rows_embeddings_and_vectors_are_adamws_with_their_own_rates() -> None:
    names = {"mlp.row_D": (8,), "embed_tokens.weight": (6, 8), "mlp.gate.weight": (3, 8), "norm.weight": (8,)}
    ours = {name: nn.Parameter(torch.ones(shape)) for name, shape in names.items()}
    theirs = deepcopy(ours)
    stepped(NORMUON, ours)
    groups = [
        {"params": [theirs["mlp.row_D"]], "lr": 0.01, "weight_decay": 0.0},
        {"params": [theirs["norm.weight"]], "lr": 0.02, "weight_decay": 0.0},
        {"params": [theirs["embed_tokens.weight"], theirs["mlp.gate.weight"]], "lr": 0.02},
    ]
    peer, dice = torch.optim.AdamW(groups, betas=(0.9, 0.95), weight_decay=0.1), torch.Generator().manual_seed(0)
    for _ in range(3):
        for parameter in theirs.values():
            parameter.grad = torch.randn(parameter.shape, generator=dice) * 1e-3
        peer.step()
    for name, parameter in ours.items():
        torch.testing.assert_close(parameter, theirs[name], msg=lambda m, n=name: f"{n}: {m}")


def test_experts_and_projections_that_share_a_tensor_are_matrices_of_their_own() -> None:
    """Two experts, whose gate and up projection [6, 4] are one below the other."""
    start = torch.randn(2, 12, 4, generator=torch.Generator().manual_seed(1))
    grads = torch.randn(2, 12, 4, generator=torch.Generator().manual_seed(2))
    fused = nn.Parameter(start.clone())
    alone = {f"{e}.{part}.weight": nn.Parameter(start[e, 6 * part :][:6].clone()) for e in (0, 1) for part in (0, 1)}
    fused.grad = grads
    for e in (0, 1):
        for part in (0, 1):
            alone[f"{e}.{part}.weight"].grad = grads[e, 6 * part :][:6]
    NORMUON.build([("experts.gate_up_proj", fused)]).step()
    NORMUON.build(alone.items()).step()
    expected = torch.stack(list(alone.values())).reshape(2, 12, 4)
    torch.testing.assert_close(fused, expected, rtol=1e-2, atol=1e-3)
    assert not torch.equal(fused, start)


def test_going_on_from_a_state_is_going_on_bit_for_bit() -> None:
    named = {"expert.weight": nn.Parameter(torch.ones(6, 4)), "row_D": nn.Parameter(torch.ones(4))}
    first = stepped(NORMUON, named)
    kept, saved = deepcopy(named), deepcopy(first.state_dict())
    again = NORMUON.build(kept.items())
    again.load_state_dict(saved)
    for optimizer, parameters in ((first, named), (again, kept)):
        for parameter in parameters.values():
            parameter.grad = torch.linspace(-1, 1, parameter.numel()).view_as(parameter)
        optimizer.step()
    for name, parameter in named.items():
        assert torch.equal(parameter, kept[name]), name


@pytest.mark.parametrize("capabilities", [{"avx512_bf16": True}, {}])
def test_singular_values_come_near_one_and_nothing_stays_nothing(
    capabilities: dict[str, bool], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: capabilities)
    x = torch.randn(2, 16, 48, generator=torch.Generator().manual_seed(0)) * 1e-6
    values = torch.linalg.svdvals(polar(x).float())
    assert float(values.min()) > 0.6 and float(values.max()) < 1.3
    assert not polar(torch.zeros(4, 6)).any()
