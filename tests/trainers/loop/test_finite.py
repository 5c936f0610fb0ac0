"""A loss, a gradient or a weight that is not finite ends a run at once, and the checkpoint of before stays."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from flexo.errors import InputError
from tests.trainers.runs import TRAINER, data_options
from trainers.data import packed_windows
from trainers.expert.module import LitExpert
from trainers.expert.paired import pairs
from trainers.expert.train import Result
from trainers.loop.callbacks import TokenProgress

Train = Callable[..., Result]
Spoil = Callable[[LitExpert], object]
EVERY = {"trainer": replace(TRAINER, checkpoint_seconds=0.0)}


def before_step(patch: pytest.MonkeyPatch, number: int, spoil: Spoil) -> None:
    """Has `spoil` called on the module before the step of this number, the first being 1."""
    original = LitExpert.training_step

    def training_step(self: LitExpert, batch: Any, index: int) -> torch.Tensor:
        if self.trainer.global_step + 1 == number:
            spoil(self)
        return original(self, batch, index)

    patch.setattr(LitExpert, "training_step", training_step)


def nan_in_layer_1(lit: LitExpert) -> None:
    with torch.no_grad():
        pairs(lit.model)[1].row_D[0] = float("nan")


def nan_for_one_word(lit: LitExpert) -> None:
    """As if one token's embedding were damaged: the first of the second row."""
    batch = lit.trainer.datamodule.train_dataloader().batch(lit.trainer.global_step)
    with torch.no_grad():
        lit.model.get_input_embeddings().weight[batch["input_ids"][1, 5]] = float("inf")


def nan_on_the_way_back(lit: LitExpert) -> None:
    pairs(lit.model)[0].row_D.register_hook(lambda grad: grad * float("nan"))


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (nan_in_layer_1, r"step 5: loss nan, gradient norm nan\. First: the output of model\.layers\.1\.mlp, on "
                         r"documents \d.* of .*/math/train\.jsonl\.gz and documents \d.* of .*public/train"),
        (nan_for_one_word, r"First: the output of model\.embed_tokens, on documents \d+"),
        (nan_on_the_way_back, r"step 5: loss \d\.\d+, gradient norm nan\. First: the gradient of "
                              r"model\.layers\.0\.mlp\.row_D, on documents "),
    ],
)  # fmt: skip
def test_the_first_step_that_is_not_finite_is_named_and_not_taken(
    train: Train, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, spoil: Spoil, said: str
) -> None:
    before_step(monkeypatch, 5, spoil)
    with pytest.raises(InputError, match=said) as refused:
        train("math", **EVERY)
    checkpoint = tmp_path / "math.run/last.ckpt"
    assert f"is kept: {checkpoint}. " in str(refused.value) and "resume=false" in str(refused.value)
    kept = torch.load(checkpoint, weights_only=True)
    assert kept["global_step"] == 4 and all(bool(part.isfinite().all()) for part in kept["state_dict"].values())
    assert not (tmp_path / "math.pt").exists()


def test_without_a_checkpoint_nothing_stays(train: Train, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before_step(monkeypatch, 2, nan_in_layer_1)
    with pytest.raises(InputError, match=r"step 2: .* No checkpoint was made"):
        train("math")
    assert not (tmp_path / "math.run").exists()


def test_in_parts_the_documents_of_all_parts_are_looked_at(
    train: Train, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before_step(monkeypatch, 3, nan_in_layer_1)
    with pytest.raises(InputError, match=r"step 3: .* documents \d+.* of .*math/train.* and documents .*public/train"):
        train("math", trainer=replace(TRAINER, accumulate=2))


@pytest.mark.parametrize("step", [4, 12])
def test_weights_that_are_not_finite_replace_no_checkpoint(
    train: Train, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: int
) -> None:
    original = TokenProgress.on_train_batch_end

    def spoil(self: TokenProgress, trainer: Any, module: Any, *args: Any) -> None:
        original(self, trainer, module, *args)
        if trainer.global_step == step:
            nan_in_layer_1(module)

    monkeypatch.setattr(TokenProgress, "on_train_batch_end", spoil)
    with pytest.raises(InputError, match=rf"step {step}: weights that are not finite after it\. The checkpoint"):
        train("math", **EVERY)
    assert torch.load(tmp_path / "math.run/last.ckpt", weights_only=True)["global_step"] == step - 1


def test_a_model_that_is_damaged_from_the_start_is_not_trained(
    train: Train, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(LitExpert, "setup", lambda self, stage: nan_in_layer_1(self))
    with pytest.raises(InputError, match=r"own/loss is nan before training"):
        train("math")
    assert not (tmp_path / "math.run").exists()


@pytest.mark.parametrize("packing", ["concat", "best_fit"])
def test_a_window_says_which_documents_it_has(shards: Path, small_anchor: Path, tmp_path: Path, packing: Any) -> None:
    windows = packed_windows(shards / "math/train.jsonl.gz", small_anchor, data_options(tmp_path, packing=packing))
    starts = windows.shard.starts
    for number in range(len(windows)):
        ids = set(windows.read(np.array([number]))["input_ids"][0].tolist())
        documents = windows.documents(number)
        told = [set(windows.shard.ids[starts[n] : starts[n + 1]].tolist()) for n in documents]
        assert ids <= set().union(*told) and all(ids & one for one in told)
        assert windows.where == str(shards / "math/train.jsonl.gz")
