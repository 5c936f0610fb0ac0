"""Training all weights: dense specialists and the unrestricted mixture, as plain folders."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from flexo.atomic_files import sha256_file
from flexo.errors import InputError
from merge.formats.anchor_folder import open_olmo2
from merge.formats.merged_folder import open_merged
from merge.formats.model_folder import ModelFolder
from tests.trainers.runs import data_options, expert_arguments
from trainers.expert.cost_plan import Load, plan_cost
from trainers.expert.train import Result
from trainers.full_finetune import WholeOptions, WholeResult, train_whole
from trainers.loop.module import LossOptions
from trainers.loop.optimizer import OptimizerOptions

TrainWhole = Callable[..., WholeResult]
DENSE = WholeOptions("dense")


@pytest.fixture
def whole(small_anchor: Path, shards: Path, tmp_path: Path) -> TrainWhole:
    def run(domain: str = "math", /, **changes: Any) -> WholeResult:
        changes = {"model": DENSE, "output": tmp_path / domain} | changes
        result = train_whole(**expert_arguments(domain, small_anchor, shards, tmp_path, **changes))
        assert result is not None
        return result

    return run


def test_a_specialist_is_a_plain_olmo2_that_learned(whole: TrainWhole, small_anchor: Path) -> None:
    result = whole(data=data_options(small_anchor.parent / "tokens"))
    losses = result.training["losses"]
    assert losses["own_after"] < losses["own_before"] - 0.1
    made, anchor = open_olmo2(result.path), ModelFolder(small_anchor)
    for name in anchor.names:
        assert made.dtype(name) == anchor.dtype(name) and not torch.equal(made.tensor(name), anchor.tensor(name)), name
    for name in ("tokenizer.json", "config.json"):
        assert sha256_file(result.path / name) == sha256_file(small_anchor / name)
    about = json.loads((result.path / "flexo.json").read_text())
    assert about["domain"] == "math" and about["training"]["tokens"] == 12 * 4 * 32
    assert about["data"]["documents"] == 200 and about["anchor"]["name"] == "anchor"
    with torch.no_grad():
        ids_BT = torch.arange(20)[None]
        assert AutoModelForCausalLM.from_pretrained(result.path)(ids_BT).logits.isfinite().all()


@pytest.mark.parametrize("model", [DENSE, WholeOptions("mixture", experts=2)], ids=["dense", "mixture"])
def test_baselines_learn_with_muon_too(whole: TrainWhole, model: WholeOptions) -> None:
    own = whole(model=model, optimizer=OptimizerOptions(lr=0.02, kind="normuon", rest_lr=5e-3)).training["losses"]
    assert own["own_after"] < own["own_before"] - 0.1


def test_a_failed_export_does_not_cost_the_training(
    whole: TrainWhole, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from trainers import full_finetune as module

    mixture = WholeOptions("mixture", experts=3)
    first = whole(model=mixture, output=tmp_path / "first")
    with monkeypatch.context() as patch:
        patch.setattr(module, "write_whole", lambda *_a: (_ for _ in ()).throw(InputError("disk full")))
        with pytest.raises(InputError, match="disk full"):
            whole(model=mixture, output=tmp_path / "again")
    again = whole(model=mixture, output=tmp_path / "again")
    assert sha256_file(first.path / "model.safetensors") == sha256_file(again.path / "model.safetensors")
    assert not (tmp_path / "again.run/start").exists() and not (tmp_path / "again.run/last.ckpt").exists()


def test_a_mixture_matches_the_flops_of_experts_and_loads_as_trained(
    whole: TrainWhole, train: Callable[..., Result], tmp_path: Path
) -> None:
    experts = tuple(train(name, output=tmp_path / f"{name}.pt").path for name in ("math", "code"))
    said: list[str] = []
    options = WholeOptions("mixture", match=experts, flops=2.0, top_k=2, balance=0.01)
    result = whole("math", model=options, output=tmp_path / "pooled", say=said.append)
    merged = open_merged(result.path)
    assert merged.domains == ["public", "expert-1", "expert-2"]
    assert merged.weights.config["num_experts_per_tok"] == 2
    pair = plan_cost(merged.architecture, Load(0, 32, 1)).flops_per_token
    spent = 2 * 12 * 4 * 32 * pair
    assert result.training["flops"] == pytest.approx(2 * spent, rel=4 * 32 / result.training["tokens"])
    assert "cost 2 times the FLOPs of training 2 experts" in said[-1]
    own = result.training["losses"]
    assert own["own_after"] < own["own_before"] - 0.1
    ups = [merged.weights.tensor(f"model.layers.0.mlp.experts.{e}.up_proj.weight") for e in range(3)]
    assert not torch.equal(ups[0], ups[1])
    assert "All weights were trained together" in (result.path / "README.md").read_text()
    model = AutoModelForCausalLM.from_pretrained(result.path)
    up_DF = model.model.layers[0].mlp.experts.gate_up_proj[1].chunk(2)[1]
    assert torch.equal(up_DF, ups[1])


def test_what_cannot_be_trained_whole_is_refused(whole: TrainWhole, tmp_path: Path) -> None:
    for make, message in (
        (lambda: WholeOptions("mixture"), "how many experts"),
        (lambda: WholeOptions("mixture", experts=2, flops=0.0), r"model\.flops=0"),
        (lambda: whole(model=WholeOptions("mixture", match=(tmp_path / "none.pt",))), "no such file"),
        (lambda: whole(loss=LossOptions(own_domain=1.0)), r"loss\.own_domain are settings of train_router"),
    ):
        with pytest.raises(InputError, match=message):
            make()
    assert not list(tmp_path.glob("math*"))
