from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from flexmix.domains.moments import Moments
from flexo.errors import ModelFolderError
from merge.formats.anchor_folder import ROUTER, about, open_anchor, open_olmo2, write_shared
from trainers.router.row_init import moment_tensors


@pytest.fixture
def copy(tiny_anchor: Path, tmp_path: Path) -> Path:
    """An anchor of one's own to damage."""
    shutil.copytree(tiny_anchor, tmp_path / "anchor")
    return tmp_path / "anchor"


def test_what_an_anchor_says(tiny_anchor: Path) -> None:
    anchor = open_anchor(tiny_anchor)
    said = about(tiny_anchor)
    assert (said["digest"], said["tokenizer_digest"], said["router_digest"]) == (
        anchor.digest, anchor.tokenizer_digest, anchor.router_digest
    )  # fmt: skip
    assert said["architecture"] == anchor.architecture.to_dict() and said["made_by"] == "tests/merge/tiny.py"
    assert anchor.architecture.rope_theta == 12345.0 and anchor.architecture.num_key_value_heads == 2
    assert anchor.public_row(2).shape == (32,)
    assert anchor.moments(0) is None and anchor.reference == tiny_anchor / "flexo" / "public"


def test_the_digest_reads_the_whole_model_once(tiny_anchor: Path) -> None:
    anchor = open_anchor(tiny_anchor)
    told: list[float] = []
    anchor.advance = told.append
    assert anchor.digest == anchor.digest == open_anchor(tiny_anchor).digest
    assert sum(told) == anchor.weights.nbytes


def test_moments_travel_with_the_anchor(copy: Path) -> None:
    rows = load_file(copy / "flexo" / ROUTER)
    x_ND = torch.randn(100, 32, generator=torch.Generator().manual_seed(0)) + 1
    measured = Moments.empty(32)
    measured.update(x_ND)
    former = {"mean": measured.mean.float(), "second_moment": measured.second.float()}
    for moments in (
        moment_tensors([measured] * 3),
        {f"layers.{n}.{name}": tensor for n in range(3) for name, tensor in former.items()},
    ):
        write_shared(copy, rows, moments, {})
        read = open_anchor(copy).moments(2)
        assert read is not None
        np.testing.assert_allclose(read[0], x_ND.double().mean(0), rtol=1e-5)
        np.testing.assert_allclose(read[1], np.cov(x_ND.double(), rowvar=False, bias=True), atol=5e-4)
    write_shared(copy, rows, None, {})
    assert open_anchor(copy).moments(2) is None


@pytest.mark.parametrize(
    "said", [None, 1.5, [], {}, *({"bits_per_byte": bits} for bits in (True, "1.5", -1.0, 0.0, None))]
)
def test_what_an_anchor_says_of_public_text_is_a_number_or_nothing(copy: Path, said: object) -> None:
    rows = load_file(copy / "flexo" / ROUTER)
    write_shared(copy, rows, None, {"public_text": said})
    assert open_anchor(copy).public_bits is None
    write_shared(copy, rows, None, {"public_text": {"bits_per_byte": 1.5}})
    assert open_anchor(copy).public_bits == 1.5
    (copy / "flexo" / "anchor.json").unlink()
    assert open_anchor(copy).public_bits is None


def test_the_router_digest_is_over_the_public_rows_alone(tiny_anchor: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(tiny_anchor, tmp_path / "anchor")
    anchor = open_anchor(copy)
    rows, digest = dict(anchor.router), anchor.router_digest
    for change, same in (("bias", True), ("weight", False)):
        write_shared(copy, {name: tensor + (change in name) for name, tensor in rows.items()}, None, {})
        assert (open_anchor(copy).router_digest == digest) == same


def test_an_anchor_without_shared_rows_learns_how_to_make_them(copy: Path) -> None:
    shutil.rmtree(copy / "flexo")
    open_olmo2(copy)
    with pytest.raises(ModelFolderError, match=r"no flexo/public_router.*python train_anchor\.py anchor\.path="):
        open_anchor(copy)


@pytest.mark.parametrize("name", ["layers.1.router.weight", "layers.2.bias_direction", "layers.0.bias_error"])
def test_shared_rows_that_do_not_fit_are_refused(copy: Path, name: str) -> None:
    path = copy / "flexo" / ROUTER
    rows = load_file(path)
    for change, message in [
        (torch.zeros(7), r"is \(7,\), this anchor needs"),
        (torch.full_like(rows[name], torch.nan), "holds NaN or infinite"),
        (None, "is nothing, this anchor needs"),
    ]:
        new = {key: tensor for key, tensor in rows.items() if key != name}
        save_file(new if change is None else new | {name: change}, path)
        with pytest.raises(ModelFolderError, match=f"{name} {message}"):
            open_anchor(copy)
    path.write_bytes(b"x")
    with pytest.raises(ModelFolderError, match="not a whole safetensors file"):
        open_anchor(copy)


def test_an_anchor_needs_its_tokenizer(copy: Path) -> None:
    (copy / "tokenizer.json").unlink()
    with pytest.raises(ModelFolderError, match=r"tokenizer\.json: no such file"):
        _ = open_anchor(copy).tokenizer_digest


def test_an_anchor_must_be_a_whole_olmo2(copy: Path) -> None:
    config = json.loads((copy / "config.json").read_text())
    for change, message in [
        ({"model_type": "llama"}, "model_type is 'llama', expected 'olmo2'"),
        ({"num_hidden_layers": 4}, r"not a whole OLMo-2. Missing: model\.layers\.3\..* and 7 more"),
        ({"tie_word_embeddings": True}, r"lm_head\.weight is stored and differs"),
        ({"hidden_size": 36}, "its config.json asks for"),
    ]:
        (copy / "config.json").write_text(json.dumps(config | change))
        with pytest.raises(ModelFolderError, match=message):
            open_anchor(copy)
    (copy / "config.json").unlink()
    with pytest.raises(ModelFolderError, match=r"Is .* a model folder"):
        open_anchor(copy)
    with pytest.raises(ModelFolderError, match="no such folder"):
        open_anchor(copy / "none")
