"""Making an anchor: from scratch, and from an existing OLMo-2."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from flexmix.documents.corpus import find_split, read_documents
from flexo.atomic_files import sha256_file
from flexo.errors import InputError
from merge.formats.anchor_folder import MOMENTS, about, open_anchor
from tests.trainers.runs import train_small_anchor
from trainers.anchor.train import AnchorOptions
from trainers.loop.trainer import TrainerOptions
from trainers.router.row_init import router_input_moments


def test_the_result_is_a_plain_folder_with_what_owners_share(small_anchor: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(small_anchor)
    tokenizer = AutoTokenizer.from_pretrained(small_anchor)
    assert type(model).__name__ == "Olmo2ForCausalLM"
    assert tokenizer.decode(tokenizer("the city 12")["input_ids"]) == "the city 12"
    assert model.config.eos_token_id == tokenizer.eos_token_id == 0
    anchor = open_anchor(small_anchor)
    said = about(small_anchor)
    assert (said["digest"], said["router_digest"]) == (anchor.digest, anchor.router_digest)
    assert said["training"]["loss_after"] < said["training"]["loss_before"] - 0.5
    assert not [path for path in small_anchor.glob("*.safetensors") if path.name != "model.safetensors"]
    assert said["public_text"]["nats_per_token"] == pytest.approx(said["training"]["loss_after"], rel=0.1)
    assert anchor.public_bits == said["public_text"]["bits_per_byte"] > 0.5
    moments = anchor.moments(1)
    assert moments is not None and moments[1].shape == (32, 32)
    layers, width = anchor.architecture.num_hidden_layers, 32
    assert (small_anchor / "flexo" / MOMENTS).stat().st_size < layers * (width * (width - 1) + 8 * width) + 2000


def test_the_reference_text_is_a_sample_of_the_public_text(small_anchor: Path, shards: Path) -> None:
    for split in ("train", "test"):
        shipped = list(read_documents(find_split(open_anchor(small_anchor).reference, split)))
        public = list(read_documents(find_split(shards / "public", split)))
        assert 0 < len(shipped) <= len(public) and set(shipped) <= set(public)


def test_the_same_seed_gives_the_same_anchor(small_anchor: Path, shards: Path, tmp_path: Path) -> None:
    train_small_anchor(shards / "public", tmp_path / "again")
    first, again = open_anchor(small_anchor), open_anchor(tmp_path / "again")
    assert (first.digest, first.router_digest) == (again.digest, again.router_digest)


def test_an_existing_olmo2_is_taken_byte_for_byte(tiny_anchor: Path, shards: Path, tmp_path: Path) -> None:
    train_small_anchor(shards / "public", tmp_path / "taken", anchor=AnchorOptions(path=str(tiny_anchor)))
    for name in ("model.safetensors", "config.json", "tokenizer.json"):
        assert sha256_file(tmp_path / "taken" / name) == sha256_file(tiny_anchor / name)
    taken, original = open_anchor(tmp_path / "taken"), open_anchor(tiny_anchor)
    assert taken.digest == original.digest and taken.router_digest != original.router_digest
    assert torch.equal(taken.public_row(0), taken.public_row(0)) and taken.moments(0) is not None
    assert taken.public_bits is not None


def test_rows_are_measured_in_the_dtype_that_owners_measure_in(
    tiny_anchor: Path, shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = []

    def moments(model: Any, *rest: Any) -> Any:
        seen.append(model.dtype)
        return router_input_moments(model, *rest)

    monkeypatch.setattr("trainers.anchor.train.router_input_moments", moments)
    taken = AnchorOptions(path=str(tiny_anchor))
    for precision in ("bf16-mixed", "32-true"):
        trainer = TrainerOptions(precision=precision, accelerator="cpu")
        train_small_anchor(shards / "public", tmp_path / precision, anchor=taken, trainer=trainer)
    assert seen == [torch.bfloat16, torch.float32]


def test_what_cannot_become_an_anchor_is_refused(tiny_anchor: Path, shards: Path, tmp_path: Path) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full/file").touch()
    for change, message in (
        ({"output": tmp_path / "full"}, "not empty"),
        ({"text": tmp_path / "none"}, "no such folder"),
        ({"anchor": AnchorOptions(vocab_size=100_000)}, "too little text for a vocabulary of 100000"),
        ({"anchor": AnchorOptions(path="some/where")}, r"anchor\.path=some/where"),
    ):
        with pytest.raises(InputError, match=message):
            train_small_anchor(**({"text": shards / "public", "output": tmp_path / "new"} | change))
        assert not list(tmp_path.glob("new*"))
