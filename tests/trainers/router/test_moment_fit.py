"""Rows from moments: the posterior of Gaussians, nothing left of who has gone, and the command around it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from flexmix.domains.embedding import Embedding, read_embedding
from flexmix.domains.moments import Moments
from flexmix.packing.loaders import EvalLoader
from flexo.atomic_files import sha256_file
from merge.commands.flexo_optout import main as optout
from merge.formats.anchor_folder import open_anchor
from merge.formats.manifest import read_manifest
from merge.formats.model_folder import ModelFolder
from merge.planning.merge_plan import execute
from tests.conftest import MakeExpert
from tests.merge.tools import call, even_plan
from trainers.commands.flexo_embed import main as embed
from trainers.commands.flexo_fit_router import main
from trainers.data import DataOptions, plain_windows
from trainers.router.fit_router import samples_for
from trainers.router.moment_fit import composed_rows
from trainers.router.row_init import router_input_moments

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


def test_public_text_can_count_for_more() -> None:
    """Twice the weight is twice the prior: the public row gains log 2 against the others where all inputs have a 1."""
    means = {name: torch.tensor([place, 1.0], dtype=torch.float64) for name, place in (("public", 0.0), ("math", 1.0))}
    domains = {name: gaussian(mean, torch.diag(torch.tensor([1.0, 0.0]))) for name, mean in means.items()}
    once, twice = (composed_rows(domains, samples=50_000, public_weight=weight) for weight in (1.0, 2.0))
    margins = [rows[1] - rows[0] for rows in (once, twice)]
    assert torch.allclose(margins[1] - margins[0], torch.tensor([0.0, -0.693]), atol=0.01)


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
    execute(even_plan(paths, small_anchor), tmp_path / "model")
    return tmp_path / "model"


def test_only_routers_change_and_leaving_leaves_nothing(
    model: Path, small_anchor: Path, embeddings: dict[str, Path], make_expert: MakeExpert, tmp_path: Path
) -> None:
    assert call(main, model, *embeddings.values(), "--anchor", small_anchor, "-o", tmp_path / "fitted") == 0
    before, after = ModelFolder(model), ModelFolder(tmp_path / "fitted")
    changed = {name for name in before.names if before.stored(name).digest() != after.stored(name).digest()}
    assert changed == {name for name in before.names if name.endswith("mlp.gate.weight")}
    manifest = read_manifest(tmp_path / "fitted")
    assert manifest["router_training"]["domains"] == ["public", "math", "news"]
    assert "no text went into" in (tmp_path / "fitted" / "README.md").read_text()

    assert call(optout, tmp_path / "fitted", "--drop", "news", "-o", tmp_path / "left") == 0
    execute(even_plan([make_expert("math", anchor=small_anchor)], small_anchor), tmp_path / "never")
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


def test_another_round_is_measured_in_the_model(
    model: Path, small_anchor: Path, shards: Path, embeddings: dict[str, Path], tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    measured: dict[str, Path] = {}
    for domain, text in (
        ("public", small_anchor / "flexo/public"),
        ("math", shards / "math"),
        ("news", shards / "code"),
    ):
        measured[domain] = tmp_path / "round2" / f"{domain}.safetensors"
        options = ["--domain", domain, "--length", "32", "--windows", "16", "--cache", tmp_path / "tokens"]
        arguments = [text, "--anchor", small_anchor, "--model", model, "-o", measured[domain], *options]
        assert call(embed, *arguments) == 0
    made = read_embedding(measured["math"])
    loaded = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)
    options = DataOptions(tokens=1, length=32, moment_windows=16, cache=tmp_path / "tokens")
    windows = plain_windows(shards / "math/train.jsonl.gz", small_anchor, options)
    moments = router_input_moments(loaded, EvalLoader(windows, 8, 16), lambda _tokens: None)
    torch.testing.assert_close(made.mean_LD, torch.stack([part.mean for part in moments]).float())

    assert call(main, model, *measured.values(), "--anchor", small_anchor, "-o", tmp_path / "fitted") == 0
    assert read_manifest(tmp_path / "fitted")["router_training"]["measured_in"] == "model"
    assert "measured in the merged model" in (tmp_path / "fitted/README.md").read_text()
    stored = ModelFolder(tmp_path / "fitted").tensor("model.layers.1.mlp.gate.weight")
    domains = {}
    for name, path in measured.items():
        file = read_embedding(path)
        assert file.second_LDD is not None
        domains[name] = Moments.of(file.mean_LD[1], file.second_LDD[1])
    expected = composed_rows(domains, samples=samples_for(stored.shape[1]), public_weight=len(measured) - 1)
    assert torch.equal(stored, expected)

    capsys.readouterr()
    public, math, news = measured.values()
    for files, folder, message in (
        (
            [public, math, embeddings["news"]],
            model,
            f"news.safetensors: measured with {open_anchor(small_anchor).digest[:12]}",
        ),
        ([math, news], model, "expected the router input of"),
        ([public, math], model, "no embedding of news"),
        ([public, math, news], tmp_path / "fitted", "of public text says"),
    ):
        assert call(main, folder, *files, "--anchor", small_anchor, "-o", tmp_path / "new") == 1
        assert message in capsys.readouterr().err and not (tmp_path / "new").exists()


def test_a_model_of_another_anchor_and_an_encoder_are_refused(
    model: Path, small_anchor: Path, tiny_anchor: Path, shards: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "x.safetensors"
    for anchor, more, message in (
        (tiny_anchor, [], "was merged on"),
        (small_anchor, ["--encoder"], "--encoder with --model"),
    ):
        assert call(embed, shards / "math", "--anchor", anchor, "--model", model, "-o", output, *more) == 1
        assert message in capsys.readouterr().err and not output.exists()


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
        ([math, absurd], small_anchor, "which no text gives"),
        ([math, news], tiny_anchor, "the anchor that the experts were trained with"),
    ):
        assert call(main, model, *files, "--anchor", anchor, "-o", tmp_path / "new") == 1
        assert message in capsys.readouterr().err and not (tmp_path / "new").exists()
