"""Muon against PyTorch's own on plain matrices, and what that does not take."""

from __future__ import annotations

from copy import deepcopy

import pytest
import torch
from torch import nn

from trainers.loop.muon import polar
from trainers.loop.optimizer import OptimizerOptions

MUON = OptimizerOptions(lr=0.1, kind="muon", weight_decay=0.1, row_lr=0.01, rest_lr=0.02)


def stepped(options: OptimizerOptions, named: dict[str, nn.Parameter], seed: int = 0) -> torch.optim.Optimizer:
    """Three steps with random gradients."""
    optimizer, dice = options.build(named.items()), torch.Generator().manual_seed(seed)
    for _ in range(3):
        for parameter in named.values():
            parameter.grad = torch.randn(parameter.shape, generator=dice) * 1e-3
        optimizer.step()
    return optimizer


@pytest.mark.parametrize("shape", [(12, 8), (8, 12), (8, 8)])
def test_steps_on_a_matrix_are_those_of_pytorch(shape: tuple[int, int]) -> None:
    start = torch.randn(shape, generator=torch.Generator().manual_seed(1))
    ours, theirs = nn.Parameter(start.clone()), nn.Parameter(start.clone())
    stepped(MUON, {"expert.weight": ours})
    peer, dice = torch.optim.Muon([theirs], lr=0.1, weight_decay=0.1, adjust_lr_fn="match_rms_adamw"), torch.Generator()
    dice.manual_seed(0)
    for _ in range(3):
        theirs.grad = torch.randn(shape, generator=dice) * 1e-3
        peer.step()
    moved = (theirs - start).norm()
    assert (ours - theirs).norm() < 0.02 * moved, "PyTorch rounds the gradient to bf16 before it is scaled, too"


def test_rows_embeddings_and_vectors_are_adamws_with_their_own_rates() -> None:
    names = {"mlp.row_D": (8,), "embed_tokens.weight": (6, 8), "mlp.gate.weight": (3, 8), "norm.weight": (8,)}
    ours = {name: nn.Parameter(torch.ones(shape)) for name, shape in names.items()}
    theirs = deepcopy(ours)
    stepped(MUON, ours)
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
    MUON.build([("experts.gate_up_proj", fused)]).step()
    MUON.build(alone.items()).step()
    expected = torch.stack(list(alone.values())).reshape(2, 12, 4)
    torch.testing.assert_close(fused, expected, rtol=1e-2, atol=1e-3)
    assert not torch.equal(fused, start)


def test_going_on_from_a_state_is_going_on_bit_for_bit() -> None:
    named = {"expert.weight": nn.Parameter(torch.ones(6, 4)), "row_D": nn.Parameter(torch.ones(4))}
    first = stepped(MUON, named)
    kept, saved = deepcopy(named), deepcopy(first.state_dict())
    again = MUON.build(kept.items())
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
