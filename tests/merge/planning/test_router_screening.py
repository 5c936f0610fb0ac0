"""Router rows that would swallow every token are seen before a merge."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from flexmix.domains.moments import Moments
from flexo.errors import ExpertFileError, ModelFolderError
from merge.formats.anchor_folder import MOMENTS, ROUTER, open_anchor, write_shared
from merge.formats.expert_file import write_expert
from merge.planning.merge_plan import plan
from merge.planning.router_screening import margin_of
from tests.merge.tiny import expert_header, expert_values
from trainers.router.row_init import bias_direction, discriminant

X_ND = torch.randn(5000, 32, generator=torch.Generator().manual_seed(0)) + 1


@pytest.fixture(scope="module")
def anchor(tiny_anchor: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An anchor with the moments of `X_ND` in every layer."""
    folder = Path(shutil.copytree(tiny_anchor, tmp_path_factory.mktemp("moments") / "anchor"))
    moments = {f"layers.{n}.mean": X_ND.mean(0) for n in range(3)}
    moments |= {f"layers.{n}.second_moment": X_ND.T @ X_ND / len(X_ND) for n in range(3)}
    write_shared(folder, load_file(folder / "flexo" / ROUTER), moments, {})
    return folder


def expert(anchor: Path, path: Path, scale: float, shift: float) -> Path:
    """An expert file whose row in layer 1 is `r_pub + scale * noise + shift`."""
    opened = open_anchor(anchor)
    values = expert_values("math", opened)
    for n in range(3):
        values[f"layers.{n}.router.weight"] = opened.public_row(n) - 0.1
    noise = torch.randn(32, generator=torch.Generator().manual_seed(1))
    values["layers.1.router.weight"] = opened.public_row(1) + scale * noise + shift
    write_expert(path, expert_header("math", opened), values, replace=True)
    return path


def test_margin_and_share_are_those_of_the_text(anchor: Path) -> None:
    opened = open_anchor(anchor)
    row = opened.public_row(1) + 0.1
    margin = margin_of(opened, 1, row.numpy())
    m_N = X_ND @ (row - opened.public_row(1))
    assert margin is not None
    assert margin.mean == pytest.approx(m_N.mean().item(), rel=1e-4)
    assert margin.deviation == pytest.approx(m_N.std().item(), rel=1e-3)
    assert margin.mass == pytest.approx(m_N.sigmoid().mean().item(), abs=0.01)


def test_unusual_rows_are_warned_about_and_absurd_ones_refused(anchor: Path, tmp_path: Path) -> None:
    path = tmp_path / "math.pt"
    assert plan([expert(anchor, path, 0.0, -0.1)], anchor).warnings == []
    (warning,) = plan([expert(anchor, path, 0.0, 0.2)], anchor).warnings
    assert "layer 1 would have a router mass of 99% on public text, beside the public expert alone" in warning
    (warning,) = plan([expert(anchor, path, 0.0, -3.0)], anchor).warnings
    assert "layer 1 has a router margin of" in warning and "usual are 1 to 10" in warning
    with pytest.raises(ExpertFileError, match=r"row of layer 1 has a router margin of .* Do not merge this file"):
        plan([expert(anchor, path, 1e4, 0.0)], anchor)


@pytest.mark.parametrize(("spread", "longer"), [(0.3, 2.0), (1.0, 3.0), (3.0, 30.0)])  # of own text beside public text
def test_no_discriminant_is_loud_and_a_longer_one_is(
    anchor: Path, tmp_path: Path, spread: float, longer: float
) -> None:
    opened, path = open_anchor(anchor), tmp_path / "math.pt"
    own_ND = spread * torch.randn(5000, 32, generator=torch.Generator().manual_seed(2)) + torch.linspace(0, 2, 32)
    own, public = (Moments.of(x_ND.mean(0), x_ND.T @ x_ND / len(x_ND)) for x_ND in (own_ND, X_ND))
    w_D, intercept = discriminant(own, public, 0.01)
    over_D = (w_D + intercept * bias_direction(public)).float()
    values = expert_values("math", opened)

    def warnings(length: float) -> list[str]:
        for n in range(3):
            values[f"layers.{n}.router.weight"] = opened.public_row(n) + length * over_D
        write_expert(path, expert_header("math", opened), values, replace=True)
        return plan([path], anchor).warnings

    assert warnings(1.0) == []
    (warning,) = warnings(longer)
    assert "math.pt: layer 0 is louder than" in warning and warning.endswith("and the like in 2 more layers")


def test_without_moments_only_the_norm_can_tell(tiny_anchor: Path, tmp_path: Path) -> None:
    path = tmp_path / "math.pt"
    assert plan([expert(tiny_anchor, path, 100.0, 0.0)], tiny_anchor).warnings == []
    with pytest.raises(ExpertFileError, match=r"row of layer 1 has norm .*, the public row's is .* Do not merge"):
        plan([expert(tiny_anchor, path, 1e8, 0.0)], tiny_anchor)


def test_moments_that_do_not_fit_are_refused(anchor: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(anchor, tmp_path / "copy"))
    path = copy / "flexo" / MOMENTS
    moments = load_file(path)
    for change in ({}, {"layers.0.mean": torch.zeros(3)}, {"layers.0.mean": torch.full((32,), torch.nan)}):
        kept = moments if change else {}
        save_file(kept | change, path)
        with pytest.raises(ModelFolderError, match="moments of layer 0"):
            margin_of(open_anchor(copy), 0, torch.zeros(32).numpy())
