"""Router rows: the discriminant is a density ratio, and folding a bias is a least-squares solution."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch

from flexmix.domains.moments import Moments
from flexo.config_dir import config_dir
from flexo.errors import InputError
from merge.formats.anchor_folder import open_anchor
from trainers.expert.module import own_vs_public_loss
from trainers.expert.paired import PairOptions
from trainers.router.row_init import ROW_INITS, RowBasis, bias_direction, discriminant, mean_row, starting_rows


def gaussian(mean: list[float], n: int = 200_000, seed: int = 0) -> torch.Tensor:
    mix = torch.tensor([[1.0, 0.4, 0.0], [0.0, 0.8, 0.3], [0.0, 0.0, 1.2]], dtype=torch.float64)
    draw = torch.randn(n, 3, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return draw @ mix + torch.tensor(mean, dtype=torch.float64)


def moments_of(x_ND: torch.Tensor) -> Moments:
    moments = Moments.empty(x_ND.shape[1])
    moments.update(x_ND)
    return moments


def test_for_gaussians_the_discriminant_is_the_log_density_ratio() -> None:
    own, public = gaussian([1.0, -0.5, 2.0], seed=1), gaussian([0.0, 0.5, 1.0], seed=2)
    w_D, intercept = discriminant(moments_of(own), moments_of(public), shrinkage=0.0)
    mix = torch.tensor([[1.0, 0.4, 0.0], [0.0, 0.8, 0.3], [0.0, 0.0, 1.2]], dtype=torch.float64)
    density = [
        torch.distributions.MultivariateNormal(torch.tensor(mean, dtype=torch.float64), mix.T @ mix)
        for mean in ([1.0, -0.5, 2.0], [0.0, 0.5, 1.0])
    ]
    x_ND = gaussian([0.5, 0.0, 1.5], n=100, seed=3)
    expected = density[0].log_prob(x_ND) - density[1].log_prob(x_ND)
    torch.testing.assert_close(x_ND @ w_D + intercept, expected, rtol=0.05, atol=0.05)


def test_the_bias_direction_is_the_least_squares_solution() -> None:
    x_ND = gaussian([1.0, 2.0, -1.0], n=5000)
    expected = torch.linalg.lstsq(x_ND, torch.ones(5000, 1, dtype=torch.float64)).solution[:, 0]
    torch.testing.assert_close(bias_direction(moments_of(x_ND), ridge=0.0), expected, rtol=1e-5, atol=1e-6)


def test_mean_rows_give_logits_of_order_one() -> None:
    x_ND = 100 * gaussian([1.0, 2.0, -1.0], n=5000)
    assert (x_ND @ mean_row(moments_of(x_ND))).abs().max() < 3


def test_a_discriminant_needs_public_moments(tiny_anchor: Path) -> None:
    own = [moments_of(torch.randn(50, 32)) for _ in range(3)]
    with pytest.raises(InputError, match="router_init=mean"):
        starting_rows("discriminant", RowBasis(open_anchor(tiny_anchor), 1.5, 0.01, 0, own))
    rows = [starting_rows("random", RowBasis(open_anchor(tiny_anchor), 1, 0, seed, own)) for seed in (0, 0, 1)]
    assert torch.equal(rows[0][0], rows[1][0]) and not torch.equal(rows[0][0], rows[2][0])


def test_there_is_one_list_of_initialisations(small_anchor: Path) -> None:
    """The check of the settings, the one of the rows, and what stands beside the setting name the same ones."""
    names = ", ".join(map(repr, list(ROW_INITS)[:-1])) + f" or {list(ROW_INITS)[-1]!r}"
    for make in (
        lambda: PairOptions(router_init="magic"),
        lambda: starting_rows("magic", RowBasis(open_anchor(small_anchor), 1, 0, 0)),
    ):
        with pytest.raises(InputError, match=rf"model\.router_init: 'magic' does not fit\. Expected {names}\."):
            make()
    (line,) = [line for line in (config_dir() / "model/paired.yaml").read_text().splitlines() if "router_init:" in line]
    assert re.findall(r"(\w+)(?: \([^)]*\))?(?:, |$)", line.partition("# ")[2]) == list(ROW_INITS)


def test_rows_that_read_no_text_are_those_of_their_files(small_anchor: Path) -> None:
    anchor = open_anchor(small_anchor)
    rows = starting_rows("public", RowBasis(anchor, 1.0, 0.01, 0))
    assert len(rows) == 2 and all(torch.equal(row_D, anchor.public_row(n)) for n, row_D in enumerate(rows))


def test_own_and_public_weigh_the_same_however_many_there_are() -> None:
    margin_LBT = torch.randn(2, 8, 5, generator=torch.Generator().manual_seed(0))
    own_B = torch.tensor([True] * 6 + [False] * 2)
    balance_B = torch.where(own_B, 8 / (2 * 6), 8 / (2 * 2))  # as the loader has it
    expected = torch.stack(
        [
            -torch.nn.functional.logsigmoid(margin_LBT[:, :6]).mean(),
            -torch.nn.functional.logsigmoid(-margin_LBT[:, 6:]).mean(),
        ]
    ).mean()
    torch.testing.assert_close(own_vs_public_loss(margin_LBT, own_B, balance_B).mean(), expected)
