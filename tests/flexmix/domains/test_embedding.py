from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

import flexmix.commands.flexo_data
from flexmix.domains.embedding import HEADER, Embedding, cosines, read_embedding
from flexmix.domains.moments import Moments
from flexo.errors import InputError
from tests.merge.tools import call

FIELDS = {"version": 1, "domain": "math", "kind": "router_input", "model": "ab" * 32, "vectors": 50}


def embedding_of(domain: str, seed: int = 0, **changes: Any) -> Embedding:
    """Of two layers, four wide."""
    moments = []
    for layer in range(2):
        moments.append(Moments.empty(4))
        moments[-1].update(torch.randn(50, 4, generator=torch.Generator().manual_seed(10 * seed + layer)) + 1)
    fields: dict[str, Any] = {"kind": "router_input", "model": "ab" * 32, "means_only": False} | changes
    return Embedding.of(domain, fields["kind"], fields["model"], moments, fields["means_only"])


@pytest.mark.parametrize("means_only", [False, True])
def test_a_file_comes_back_as_it_was(tmp_path: Path, means_only: bool) -> None:
    made = embedding_of("math", means_only=means_only)
    made.write(tmp_path / "math.safetensors")
    back = read_embedding(tmp_path / "math.safetensors")
    assert (back.domain, back.kind, back.model, back.vectors) == ("math", "router_input", "ab" * 32, 50)
    assert torch.equal(back.mean_LD, made.mean_LD) and torch.equal(back.square_L, made.square_L)
    if means_only:
        assert back.second_LDD is None and made.second_LDD is None
    else:
        assert back.second_LDD is not None and made.second_LDD is not None
        assert torch.equal(back.second_LDD, made.second_LDD)
        torch.testing.assert_close(back.square_L, back.second_LDD.diagonal(dim1=1, dim2=2).sum(-1))
    with pytest.raises(InputError, match="exists already"):
        made.write(tmp_path / "math.safetensors")


def write_raw(path: Path, header: object, **tensors: torch.Tensor) -> Path:
    good = {"mean": torch.ones(2, 4), "square": torch.ones(2)}
    text = header if isinstance(header, str) else json.dumps(header)
    save_file(good | tensors, path, {HEADER: text} if header is not None else None)
    return path


@pytest.mark.parametrize(
    ("header", "tensors", "message"),
    [
        (None, {}, "not a domain embedding"),
        ("{", {}, "header is not JSON"),
        ("[" * 100_000, {}, "header is not JSON"),
        ([], {}, "other fields than version, domain"),
        (FIELDS | {"path": "/home/me"}, {}, "other fields than version, domain"),
        (FIELDS | {"vectors": True}, {}, "other fields than"),
        (FIELDS | {"version": 2}, {}, "version 2, this flexo reads 1"),
        (FIELDS | {"kind": "magic"}, {}, "kind 'magic'"),
        (FIELDS | {"vectors": 0}, {}, "of 0 vectors"),
        (FIELDS, {"mean": torch.ones(8)}, "expected mean \\[L, D\\]"),
        (FIELDS, {"square": torch.ones(3)}, "expected mean"),
        (FIELDS, {"second_moment": torch.ones(2, 4, 5)}, "expected mean"),
        (FIELDS, {"text": torch.ones(1)}, "expected mean"),
        (FIELDS, {"mean": torch.full((2, 4), float("nan"))}, "finite float32"),
        (FIELDS, {"mean": torch.ones(2, 4, dtype=torch.float64)}, "finite float32"),
        (FIELDS, {"square": torch.zeros(2)}, "not positive"),
    ],
)
def test_other_files_are_refused(
    tmp_path: Path, header: object, tensors: dict[str, torch.Tensor], message: str
) -> None:
    path = write_raw(tmp_path / "a.safetensors", header, **tensors)
    with pytest.raises(InputError, match=message):
        read_embedding(path)


def test_what_is_no_safetensors_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"no such file\. Make it with flexo-embed"):
        read_embedding(tmp_path / "none.safetensors")
    embedding_of("math").write(tmp_path / "whole.safetensors")
    (tmp_path / "cut.safetensors").write_bytes((tmp_path / "whole.safetensors").read_bytes()[:-1])
    with pytest.raises(InputError, match="not a whole safetensors file"):
        read_embedding(tmp_path / "cut.safetensors")


def test_cosines_are_those_of_the_means_layer_by_layer() -> None:
    parts = [embedding_of(name, seed) for seed, name in enumerate(("math", "code", "news"))]
    for centre in (None, embedding_of("public", 9)):
        found = cosines(parts, centre)
        for layer in range(2):
            for i, one in enumerate(parts):
                for j, other in enumerate(parts):
                    base = centre.mean_LD[layer] if centre else torch.zeros(4)
                    vectors = (one.mean_LD[layer] - base).double(), (other.mean_LD[layer] - base).double()
                    expected = torch.nn.functional.cosine_similarity(*vectors, dim=0)
                    torch.testing.assert_close(found[layer, i, j], expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("change", [{"model": "cd" * 32}, {"kind": "text"}])
def test_embeddings_of_different_models_are_not_compared(change: dict[str, str]) -> None:
    with pytest.raises(InputError, match=r"'code' cannot be compared with 'math'.*same anchor or encoder"):
        cosines([embedding_of("math"), embedding_of("code", 1, **change)])


def test_the_command_prints_a_table_and_writes_numbers(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for seed, name in enumerate(("math", "code", "public")):
        embedding_of(name, seed).write(tmp_path / f"{name}.safetensors")
    files = [tmp_path / f"{name}.safetensors" for name in ("math", "code")]
    options = ["--layers", "--json", tmp_path / "cosines.json", "--centre", tmp_path / "public.safetensors"]
    assert call(flexmix.commands.flexo_data.main, "cosines", *files, *options) == 0
    said = capsys.readouterr().out
    kept = json.loads((tmp_path / "cosines.json").read_text())
    assert kept["domains"] == ["math", "code"] and len(kept["layers"]) == 2
    assert kept["mean"][0][1] == pytest.approx((kept["layers"][0][0][1] + kept["layers"][1][0][1]) / 2)
    assert f"| math             | 1.000 | {kept['mean'][0][1]:.3f} |" in said and "layer 1" in said
    assert call(flexmix.commands.flexo_data.main, "cosines", files[0]) == 1
    assert "a cosine needs two" in capsys.readouterr().err
