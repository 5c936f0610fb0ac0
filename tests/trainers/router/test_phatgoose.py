"""Training the row of an expert file alone: the network's bits stay, and a PHATGOOSE gate ships standardised."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from copy import deepcopy
from pathlib import Path

import pytest
import torch

from flexo.errors import InputError
from merge.formats.anchor_folder import open_anchor
from merge.formats.expert_file import open_expert
from trainers.expert.paired import PairedExperts
from trainers.expert.train import PairOptions, Result
from trainers.loop.module import LossOptions
from trainers.router.phatgoose import standardised_row
from trainers.router.row_init import public_moments

Train = Callable[..., Result]
ROW = "layers.{n}.router.weight"


def test_a_row_is_trained_on_alone_and_the_network_keeps_its_bits(
    train: Train, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = train("math", output=tmp_path / "first.pt").header
    start = tmp_path / "first.pt"
    for init in ("kept", "discriminant"):
        options = PairOptions(router_init=init, train_expert=False, start=start)
        again = train("math", output=tmp_path / f"{init}.pt", model=options)
        assert {name for name in first.tensors if first.tensors[name] != again.header.tensors[name]} == {
            ROW.format(n=n) for n in range(2)
        }
        training = again.header.training
        assert (training.tokens, training.steps, training.router_init) == (2 * 12 * 4 * 32, 24, init)
        assert training.losses.own_before == first.training.losses.own_before
        assert training.losses.own_after == pytest.approx(first.training.losses.own_after, abs=0.05)


def test_an_expert_is_trained_on_from_its_file(train: Train, tmp_path: Path) -> None:
    first = train("math", output=tmp_path / "first.pt").header.training.losses
    options = PairOptions(router_init="kept", start=tmp_path / "first.pt")
    second = train("math", output=tmp_path / "second.pt", model=options).header.training.losses
    assert second.own_after is not None and first.own_after is not None and second.own_after < first.own_after - 0.02


def test_a_phatgoose_gate_is_standardised(train: Train, small_anchor: Path, tmp_path: Path) -> None:
    train("math", output=tmp_path / "first.pt")
    options = PairOptions(router_init="public", train_expert=False, standardise=True, start=tmp_path / "first.pt")
    result = train("math", output=tmp_path / "gate.pt", model=options, loss=LossOptions(router_z=0.0))
    assert result.header.training.router_init == "phatgoose" and result.header.training.router_mass is None
    anchor, made = open_anchor(small_anchor), open_expert(result.path)
    for n in range(2):
        v_D = (made.tensor(ROW.format(n=n)) - anchor.public_row(n)).double()
        second_DD = public_moments(anchor, n, "a test").second
        assert v_D.mean().abs() < 1e-6 * v_D.abs().max() + 1e-7
        # logits sqrt(D) cos for states of average spread: |v| sqrt(D) s = sqrt(D)
        s = ((second_DD.trace() - second_DD.sum() / 32) / 32).sqrt()
        torch.testing.assert_close(v_D.norm() * s, torch.tensor(1.0).double(), rtol=1e-3, atol=0)


def test_standardised_logits_are_phatgooses_where_states_spread_alike(small_anchor: Path) -> None:
    anchor = open_anchor(small_anchor)
    second_DD = public_moments(anchor, 0, "a test").second
    s = ((second_DD.trace() - second_DD.sum() / 32) / 32).sqrt()
    draw = torch.Generator().manual_seed(0)
    x_ND = torch.randn(5, 32, generator=draw, dtype=torch.float64) + 3
    x_ND = x_ND.mean(1, keepdim=True) + (x_ND - x_ND.mean(1, keepdim=True)) * s / x_ND.std(
        1, correction=0, keepdim=True
    )
    row_D = anchor.public_row(0).double() + torch.randn(32, generator=draw, dtype=torch.float64)

    def standard(y: torch.Tensor) -> torch.Tensor:
        return (y - y.mean(-1, keepdim=True)) / y.std(-1, correction=0, keepdim=True)

    expected = standard(x_ND) @ standard(row_D - anchor.public_row(0).double()) / 32**0.5
    margin = x_ND @ (standardised_row(anchor, 0, row_D).double() - anchor.public_row(0).double())
    torch.testing.assert_close(margin, expected, rtol=1e-4, atol=1e-4)


def test_a_bias_counts_below_zero_alone() -> None:
    network = torch.nn.ModuleDict()
    for part, shape in (("gate_proj", (8, 4)), ("up_proj", (8, 4)), ("down_proj", (4, 8))):
        network[part] = torch.nn.Linear(*shape[::-1], bias=False)
    x_BTD, logits = torch.randn(1, 3, 4), []
    for bias in (0.5, 0.0, -0.5):
        layer = PairedExperts(network, deepcopy(network), torch.zeros(4), torch.zeros(4), bias=bias)
        layer(x_BTD)
        assert layer.logits_BT2 is not None
        logits.append(layer.logits_BT2[..., 1])
    assert torch.equal(logits[0], logits[1]) and torch.equal(logits[2], torch.full((1, 3), -0.5))
    with pytest.raises(InputError, match="expected at most 0"):
        PairOptions(router_bias=0.1)


def test_what_has_nothing_to_go_on_from_is_refused(train: Train, small_anchor: Path, tmp_path: Path) -> None:
    path = train("code", output=tmp_path / "code.pt").path
    for make, message in (
        (lambda: PairOptions(train_expert=False), r"model\.start=experts/math\.pt"),
        (lambda: PairOptions(router_init="kept"), r"model\.start=experts/math\.pt"),
        (lambda: PairOptions(start=path, train_expert=False, train_router=False), "nothing to train"),
        (lambda: PairOptions(start=path, rank=2), "full rank"),
        (
            lambda: train("math", model=PairOptions(start=path)),
            r"code\.pt: the expert of code, .* of math",
        ),
    ):
        with pytest.raises(InputError, match=message):
            make()
    shutil.copytree(small_anchor, tmp_path / "bare")
    (tmp_path / "bare/flexo/public_moments.safetensors").unlink()
    gate = PairOptions(start=path, train_expert=False, router_init="public", standardise=True)
    with pytest.raises(InputError, match="needs the anchor's public moments"):
        train("code", model=gate, anchor=str(tmp_path / "bare"), output=tmp_path / "none.pt")
    assert not list(tmp_path.glob("none*"))
