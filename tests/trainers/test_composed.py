"""Rows from moments: the posterior of Gaussians, nothing left of who has gone, and the command around it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from flexmix.domain import Moments
from flexmix.embedding import Embedding, read_embedding
from merge.anchor import open_anchor
from merge.assemble import execute, plan
from merge.checkpoint import Checkpoint
from merge.files import sha256_file
from merge.manifest import read_manifest
from merge.optout_cli import main as optout
from tests.conftest import MakeExpert
from tests.merge.tools import call
from trainers.composed import composed_rows
from trainers.fit_router import main

WIDTH = 6


def gaussian(mean: torch.Tensor, covariance: torch.Tensor) -> Moments:
    return Moments.of(mean, covariance + torch.outer(mean, mean))


def test_rows_are_those_of_the_posterior() -> None:
    """The posterior of Gaussians of one covariance S is a softmax of S^-1 m; a coordinate that is 1 takes the rest."""
    draw = torch.Generator().manual_seed(0)
    means = {name: torch.randn(WIDTH, generator=draw, dtype=torch.float64) for name in ("public", "math", "news")}
    for mean in means.values():
        mean[-1] = 1.0
    covariance = torch.diag(torch.tensor([0.5, 1.0, 2.0, 1.0, 0.7, 0.0], dtype=torch.float64))
    rows = composed_rows({name: gaussian(m, covariance) for name, m in means.items()}, samples=50_000)
    stacked = torch.stack(list(means.values()))
    expected = stacked[:, :-1] / covariance.diagonal()[:-1]
    found = rows[:, :-1].double()
    assert torch.allclose(found - found.mean(0), expected - expected.mean(0), atol=0.06)


@pytest.fixture
def embeddings(small_anchor: Path, tmp_path: Path) -> dict[str, Path]:
    """A file of flexo-embed for each of two domains, of made-up states."""
    opened = open_anchor(small_anchor)
    layers, width = opened.architecture.num_hidden_layers, opened.architecture.hidden_size
    paths = {}
    for seed, domain in enumerate(("math", "news")):
        draw, moments = torch.Generator().manual_seed(seed), [Moments.empty(width) for _ in range(layers)]
        for part in moments:
            part.update(torch.randn(4 * width, width, generator=draw) + 0.5 * seed)
        paths[domain] = tmp_path / f"{domain}.safetensors"
        Embedding.of(domain, "router_input", opened.digest, moments, means_only=False).write(paths[domain])
    return paths


@pytest.fixture
def model(small_anchor: Path, make_expert: MakeExpert, tmp_path: Path) -> Path:
    """public, math and news."""
    paths = [make_expert(domain, anchor=small_anchor) for domain in ("math", "news")]
    execute(plan(paths, small_anchor), tmp_path / "model")
    return tmp_path / "model"


def test_only_routers_change_and_leaving_leaves_nothing(
    model: Path, small_anchor: Path, embeddings: dict[str, Path], make_expert: MakeExpert, tmp_path: Path
) -> None:
    assert call(main, model, *embeddings.values(), "--anchor", small_anchor, "-o", tmp_path / "fitted") == 0
    before, after = Checkpoint(model), Checkpoint(tmp_path / "fitted")
    changed = {name for name in before.names if before.stored(name).digest() != after.stored(name).digest()}
    assert changed == {name for name in before.names if name.endswith("mlp.gate.weight")}
    manifest = read_manifest(tmp_path / "fitted")
    assert manifest["router_training"]["domains"] == ["public", "math", "news"]
    assert "no text went into" in (tmp_path / "fitted" / "README.md").read_text()

    assert call(optout, tmp_path / "fitted", "--drop", "news", "-o", tmp_path / "left") == 0
    execute(plan([make_expert("math", anchor=small_anchor)], small_anchor), tmp_path / "never")
    for folder in ("left", "never"):
        arguments = (
            tmp_path / folder,
            embeddings["math"],
            "--anchor",
            small_anchor,
            "-o",
            tmp_path / f"{folder}-fitted",
        )
        assert call(main, *arguments) == 0
    weights = [sha256_file(tmp_path / f"{folder}-fitted" / "model.safetensors") for folder in ("left", "never")]
    assert weights[0] == weights[1]


def test_refusals_write_nothing(
    model: Path, small_anchor: Path, tiny_anchor: Path, embeddings: dict[str, Path], tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    math, news = embeddings.values()
    means = tmp_path / "means.safetensors"
    replace(read_embedding(news), second_LDD=None).write(means)
    foreign = tmp_path / "foreign.safetensors"
    replace(read_embedding(news), domain="law").write(foreign)
    absurd = tmp_path / "absurd.safetensors"
    moments = read_embedding(news)
    replace(moments, mean_LD=moments.mean_LD * 1e30).write(absurd)
    for files, anchor, message in (
        ([math], small_anchor, "no embedding of news"),
        ([math, math], small_anchor, "a second embedding of math"),
        ([math, means], small_anchor, "means only"),
        ([math, foreign], small_anchor, "'law'"),
        ([math, absurd], small_anchor, "of no text"),
        ([math, news], tiny_anchor, "the anchor that the experts were trained with"),
    ):
        assert call(main, model, *files, "--anchor", anchor, "-o", tmp_path / "new") == 1
        assert message in capsys.readouterr().err and not (tmp_path / "new").exists()
