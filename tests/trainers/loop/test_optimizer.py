"""Schedules at their corners, and what each optimiser holds and decays."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from flexo.errors import InputError
from trainers.loop.optimizer import OptimizerOptions


def test_cosine_goes_up_in_a_line_and_down_to_the_final_rate() -> None:
    factor = OptimizerOptions(lr=1.0, warmup=0.1, final=0.2).factor(100)
    assert [factor(step) for step in (0, 4, 9)] == pytest.approx([0.1, 0.5, 1.0])
    assert factor(10) == 1.0
    assert factor(55) == pytest.approx(0.2 + 0.8 * 0.5 * (1 + math.cos(math.pi * 0.5)))
    assert factor(100) == factor(1000) == pytest.approx(0.2)


def test_wsd_stays_at_the_peak_until_the_decay() -> None:
    factor = OptimizerOptions(lr=1.0, schedule="wsd", warmup=0.1, decay=0.2, final=0.0).factor(100)
    assert [factor(step) for step in (4, 10, 50, 80)] == pytest.approx([0.5, 1.0, 1.0, 1.0])
    assert [factor(step) for step in (85, 90, 95, 100)] == pytest.approx([0.75, 0.5, 0.25, 0.0])


@pytest.mark.parametrize("schedule", ["cosine", "wsd"])
@pytest.mark.parametrize("steps", [1, 2, 3, 7])
def test_short_runs_have_a_rate_at_every_step(schedule: str, steps: int) -> None:
    factor = OptimizerOptions(lr=1.0, schedule=schedule).factor(steps)  # type: ignore[arg-type]
    assert all(0 < factor(step) <= 1 for step in range(steps + 1))


def test_normuon_goes_slower_on_an_anchor_that_knows_more() -> None:
    normuon = OptimizerOptions(kind="normuon")
    rates = [normuon.for_anchor(bits).peak for bits in (None, 8.0, 2.0, 1.6, 0.7, 1e-9)]
    assert rates == pytest.approx([1e-2, 1e-2, 1e-2, 6.4e-3, 1.225e-3, 1e-3])
    for given in (OptimizerOptions(kind="normuon", lr=3e-3), OptimizerOptions(kind="adamw")):
        assert given.for_anchor(1.0) == given


@pytest.mark.parametrize("shares", [{"warmup": 0.9, "decay": 0.2}, {"warmup": -0.1}, {"decay": -0.1}])
def test_shares_that_are_none_are_refused(shares: dict[str, float]) -> None:
    with pytest.raises(InputError, match=r"optimizer\.warmup=.*optimizer\.decay="):
        OptimizerOptions(lr=1.0, **shares)


def named() -> dict[str, nn.Parameter]:
    return {
        "layer.expert.weight": nn.Parameter(torch.ones(64, 32)),
        "layer.row_D": nn.Parameter(torch.ones(32)),
        "layer.bias": nn.Parameter(torch.ones(1)),
    }


@pytest.mark.parametrize("kind", ["adamw", "normuon", "adafactor"])
def test_matrices_are_decayed_and_rows_have_their_own_rate(kind: str) -> None:
    parameters = named()
    optimizer = OptimizerOptions(lr=1e-2, kind=kind, weight_decay=0.5, row_lr=1e-3).build(parameters.items())  # type: ignore[arg-type]
    rates = {
        id(parameter): (group["lr"], group["weight_decay"])
        for group in optimizer.param_groups
        for parameter in group["params"]
    }
    expected = [(1e-2, 0.5), (1e-3, 0.0), (1e-3, 0.0)]
    assert [rates[id(parameter)] for parameter in parameters.values()] == expected
    for parameter in parameters.values():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    assert (parameters["layer.expert.weight"] < 1).all()
    torch.testing.assert_close(parameters["layer.row_D"].data, torch.ones(32))


def test_normuon_holds_one_matrix_and_adafactor_a_row_and_a_column_where_adamw_holds_two_matrices() -> None:
    held = {}
    for kind in ("adamw", "normuon", "adafactor"):
        parameters = {"weight": nn.Parameter(torch.ones(64, 32))}
        optimizer = OptimizerOptions(lr=1e-2, kind=kind).build(parameters.items())  # type: ignore[arg-type]
        parameters["weight"].grad = torch.ones(64, 32)
        optimizer.step()
        held[kind] = sum(value.numel() for value in optimizer.state[parameters["weight"]].values())
    assert held["adamw"] >= 2 * 64 * 32 and held["normuon"] == 64 * 32 + 64 + 1 and held["adafactor"] < 200


def test_a_setting_of_another_optimiser_is_refused() -> None:
    with pytest.raises(InputError, match=r"of optimizer\.kind=normuon, not of adamw"):
        OptimizerOptions(lr=1.0, rest_lr=0.1)
