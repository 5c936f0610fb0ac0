"""Embedding files by command, and router rows that start from them."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

import trainers.commands.flexo_embed
from flexmix.domains.embedding import Embedding, read_embedding
from flexo.errors import InputError
from merge.formats.anchor_folder import open_anchor
from tests.merge.tools import call, listing
from trainers.expert.paired import PairOptions
from trainers.expert.train import Result
from trainers.router.row_init import RowBasis, embedded_rows

Train = Callable[..., Result]
OPTIONS = ["--length", "32", "--batch-size", "4", "--windows", "32"]


@pytest.fixture
def embedding(small_anchor: Path, shards: Path, tmp_path: Path) -> Path:
    """Of the math shard, measured as a training run with the options of these tests measures it."""
    path = tmp_path / "math.safetensors"
    arguments = [shards / "math", "--anchor", small_anchor, "-o", path, "--cache", tmp_path / "tokens", *OPTIONS]
    assert call(trainers.commands.flexo_embed.main, *arguments) == 0
    return path


def test_a_file_holds_the_moments_of_every_layer(embedding: Path, small_anchor: Path) -> None:
    made = read_embedding(embedding)
    assert (made.domain, made.kind, made.model) == ("math", "router_input", open_anchor(small_anchor).digest)
    assert made.vectors == 32 * 32 and made.mean_LD.shape == (2, 32)
    assert made.second_LDD is not None and made.second_LDD.shape == (2, 32, 32)


@pytest.mark.parametrize("init", ["mean", "discriminant", "random"])
def test_rows_from_a_file_are_those_of_the_text(embedding: Path, train: Train, tmp_path: Path, init: str) -> None:
    rows = []
    for name, path in (("text", None), ("file", str(embedding))):
        options = PairOptions(router_init=init, embedding=path, train_router=False)
        result = train("math", model=options, output=tmp_path / f"{name}.pt")
        rows.append([torch.load(result.path)["tensors"][f"layers.{n}.router.weight"] for n in range(2)])
    for one, other in zip(*rows, strict=True):
        # a discriminant inverts a covariance, which the file holds in float32
        rtol, atol = (1e-2, 1e-3) if init == "discriminant" else (1e-5, 1e-6)
        torch.testing.assert_close(one, other, rtol=rtol, atol=atol)


def test_a_file_for_another_start_or_anchor_is_refused(embedding: Path, train: Train, tmp_path: Path) -> None:
    path = str(embedding)
    output = tmp_path / "out/x.pt"
    made = read_embedding(embedding)
    for kind, model in (("text", "encoder"), ("router_input", "cd" * 32)):
        Embedding("math", kind, model, 1, made.mean_LD, made.square_L).write(embedding, replace=True)  # type: ignore[arg-type]
        with pytest.raises(InputError, match=r"router rows need the router input of this anchor .*flexo-embed"):
            train("math", model=PairOptions(router_init="mean", embedding=path), output=output)
    Embedding("math", "router_input", made.model, 1, made.mean_LD, made.square_L).write(embedding, replace=True)
    with pytest.raises(InputError, match=r"holds means only, and model\.router_init=discriminant needs second moments"):
        train("math", model=PairOptions(embedding=path), output=output)
    with pytest.raises(InputError, match=r"no such file\. Make it with flexo-embed"):
        train("math", model=PairOptions(router_init="mean", embedding=str(tmp_path / "none")), output=output)
    assert not output.parent.exists()


def test_a_text_encoder_gives_every_layer_a_row_as_long_as_the_public_one(small_anchor: Path, tmp_path: Path) -> None:
    mean_1D = torch.randn(1, 32, generator=torch.Generator().manual_seed(0))
    path, anchor = tmp_path / "text.safetensors", open_anchor(small_anchor)
    Embedding("math", "text", "encoder", 1, mean_1D, torch.ones(1)).write(path)
    rows = embedded_rows(path, "mean", RowBasis(anchor, 1.5, 0.01, 0))
    assert len(rows) == 2
    for n, row_D in enumerate(rows):
        assert torch.allclose(row_D, mean_1D[0] * (anchor.public_row(n).norm() / mean_1D.norm()))
    with pytest.raises(InputError, match="router rows need the router input"):
        embedded_rows(path, "discriminant", RowBasis(anchor, 1.5, 0.01, 0))


def test_an_existing_file_and_short_text_are_refused(
    embedding: Path, small_anchor: Path, shards: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = embedding.read_bytes()
    common = ["--anchor", small_anchor, "--cache", tmp_path / "tokens"]
    assert call(trainers.commands.flexo_embed.main, shards / "math", *common, "-o", embedding, *OPTIONS) == 1
    assert "--overwrite" in capsys.readouterr().err and embedding.read_bytes() == before
    held = listing(tmp_path)
    arguments = [shards / "math/test.jsonl.gz", *common, "-o", tmp_path / "b.safetensors", "--length", "100000"]
    assert call(trainers.commands.flexo_embed.main, *arguments) == 1
    assert "smaller data.length" in capsys.readouterr().err and listing(tmp_path) == held
    shutil.copy(shards / "math/train.jsonl.gz", tmp_path / "pubmed.jsonl.gz")
    arguments = [tmp_path / "pubmed.jsonl.gz", *common, "-o", tmp_path / "b.safetensors", "--means-only", *OPTIONS]
    assert call(trainers.commands.flexo_embed.main, *arguments) == 0
    made = read_embedding(tmp_path / "b.safetensors")
    assert made.domain == "pubmed" and made.second_LDD is None
