"""The paired layer: the formula, what is frozen, and its equality with the merged model."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from merge.formats.anchor_folder import open_anchor
from merge.formats.expert_file import open_expert
from merge.planning.merge_plan import execute
from tests.merge.tools import even_plan
from trainers.expert.module import LitExpert
from trainers.expert.paired import PairOptions, expert_state, pair, pairs, router_logits, trainable_parameters
from trainers.expert.train import Result
from trainers.loop.module import LossOptions
from trainers.loop.optimizer import OptimizerOptions
from trainers.router.row_init import public_router, router_input_moments


def paired(folder: Path, bias: float | None = None) -> Any:
    anchor = open_anchor(folder)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    dice = torch.Generator().manual_seed(0)
    rows = [torch.randn(anchor.architecture.hidden_size, generator=dice) for _ in model.model.layers]
    return pair(model, [anchor.public_row(n) for n in range(len(rows))], rows, PairOptions(router_bias=bias))


def batch(model: Any, rows: int = 4, length: int = 24) -> dict[str, torch.Tensor]:
    dice = torch.Generator().manual_seed(1)
    x_BT = torch.randint(model.config.vocab_size, (rows, length), generator=dice)
    own = torch.arange(rows) < rows - 1
    position_BT = torch.arange(length).expand_as(x_BT)
    return {"input_ids": x_BT, "labels": x_BT, "position_ids": position_BT, "own": own, "balance": torch.ones(rows)}


def logits(model: Any, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
    with torch.inference_mode():
        return model(input_ids=inputs["input_ids"], use_cache=False).logits


def test_an_untrained_pair_is_the_anchor(tiny_anchor: Path) -> None:
    model = paired(tiny_anchor)
    inputs = batch(model)
    plain = AutoModelForCausalLM.from_pretrained(tiny_anchor, dtype=torch.float32)
    torch.testing.assert_close(logits(model, inputs), logits(plain, inputs), rtol=0, atol=1e-5)


@pytest.mark.parametrize("bias", [None, -0.7])
def test_the_mixture_is_the_softmax_over_two_experts(tiny_anchor: Path, bias: float | None) -> None:
    layer = pairs(paired(tiny_anchor, bias))[1]
    with torch.no_grad():
        for parameter in layer.expert.parameters():
            parameter.mul_(1.5)
    x_BTD = torch.randn(2, 5, 32, generator=torch.Generator().manual_seed(2))
    scores = torch.stack([x_BTD @ layer.public_row_D, x_BTD @ layer.row_D + (bias or 0.0)], -1)
    p = scores.softmax(-1)
    expected = p[..., :1] * layer.public(x_BTD) + p[..., 1:] * layer.expert(x_BTD)
    torch.testing.assert_close(layer(x_BTD), expected, rtol=1e-5, atol=1e-5)


def test_only_experts_rows_and_biases_are_trained(tiny_anchor: Path) -> None:
    names = {name for name, _ in trainable_parameters(paired(tiny_anchor, bias=-0.1))}
    parts = ("expert.gate_proj.weight", "expert.up_proj.weight", "expert.down_proj.weight", "row_D", "bias")
    assert names == {f"model.layers.{n}.mlp.{part}" for n in range(3) for part in parts}


def test_steps_with_weight_decay_leave_every_frozen_bit_and_hold_no_state_for_it(tiny_anchor: Path) -> None:
    model = paired(tiny_anchor)
    lit = LitExpert(model, OptimizerOptions(lr=1e-2, weight_decay=0.1), LossOptions(own_vs_public=0.1), 5, [])
    lit.log_dict = lit.log = lambda *_args, **_kwargs: None  # type: ignore[method-assign]
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    trained = dict(trainable_parameters(model))
    optimizer = lit.options.build(lit.trained())
    for step in range(5):
        lit.training_step(batch(model), step).backward()
        optimizer.step()
        frozen = [name for name, p in model.named_parameters() if name not in trained]
        assert all(model.get_parameter(name).grad is None for name in frozen)
        optimizer.zero_grad()
    changed = {name for name, tensor in model.state_dict().items() if not torch.equal(tensor, before[name])}
    assert changed == set(trained)
    assert {id(p) for group in optimizer.param_groups for p in group["params"]} == {id(p) for p in trained.values()}
    assert {id(p) for p in optimizer.state} == {id(p) for p in trained.values()}


def test_the_frozen_half_of_a_trained_file_is_the_anchor_bit_for_bit(
    train: Callable[..., Result], small_anchor: Path, tmp_path: Path
) -> None:
    result = train("math")
    anchor = open_anchor(small_anchor)
    execute(even_plan([result.path], small_anchor), tmp_path / "model")
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "model", dtype=torch.float32).state_dict()
    for name in anchor.weights.names - {n for n in anchor.weights.names if ".mlp." in n}:
        assert torch.equal(merged[name], anchor.weights.tensor(name)), name
    for n in range(anchor.architecture.num_hidden_layers):
        fused = merged[f"model.layers.{n}.mlp.experts.gate_up_proj"][0]
        parts = [anchor.weights.tensor(f"model.layers.{n}.mlp.{part}_proj.weight") for part in ("gate", "up")]
        assert torch.equal(fused, torch.cat(parts))


def test_a_trained_pair_merged_alone_gives_the_pairs_logits(
    train: Callable[..., Result], small_anchor: Path, tmp_path: Path
) -> None:
    result = train("math")
    execute(even_plan([result.path], small_anchor, top_k=2), tmp_path / "model")
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "model", dtype=torch.float32)
    expert = open_expert(result.path)
    model = paired(small_anchor)
    with torch.no_grad():
        for n, layer in enumerate(pairs(model)):
            layer.row_D.copy_(expert.tensor(f"layers.{n}.router.weight"))
            for part in ("gate_proj", "up_proj", "down_proj"):
                layer.expert.get_submodule(part).weight.copy_(expert.tensor(f"layers.{n}.{part}.weight"))
    inputs = batch(model)
    assert not torch.allclose(logits(model, inputs), logits(paired(small_anchor), inputs), atol=1e-3)  # it did train
    torch.testing.assert_close(logits(merged, inputs), logits(model, inputs), rtol=0, atol=1e-5)


def test_state_has_the_names_of_an_expert_file(tiny_anchor: Path) -> None:
    state = expert_state(paired(tiny_anchor, bias=-0.1), torch.bfloat16)
    assert set(state) == {
        f"layers.{n}.{part}"
        for n in range(3)
        for part in ("gate_proj.weight", "up_proj.weight", "down_proj.weight", "router.weight", "router.bias")
    }
    assert {tensor.dtype for tensor in state.values()} == {torch.bfloat16}


def test_moments_see_exactly_what_the_router_sees(tiny_anchor: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(tiny_anchor, dtype=torch.float32)
    inputs = batch(model)
    moments = router_input_moments(model, [inputs], lambda _tokens: None)
    seen: list[torch.Tensor] = []
    pair_model = paired(tiny_anchor)
    for layer in pairs(pair_model):
        layer.register_forward_pre_hook(lambda _module, args: seen.append(args[0].detach().flatten(0, 1).double()))
    pair_model(input_ids=inputs["input_ids"], use_cache=False)
    for part, x_ND in zip(moments, seen, strict=True):
        torch.testing.assert_close(part.mean, x_ND.mean(0), rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(part.second, x_ND.T @ x_ND / len(x_ND), rtol=1e-4, atol=1e-4)
    router = public_router(moments)
    for n, x_ND in enumerate(seen):
        error = (x_ND @ router[f"layers.{n}.bias_direction"].double() - 1).square().mean().sqrt()
        assert router[f"layers.{n}.bias_error"].item() == pytest.approx(error.item(), rel=1e-2, abs=1e-3)


def test_router_logits_are_those_of_the_last_pass(tiny_anchor: Path) -> None:
    model = paired(tiny_anchor)
    inputs = batch(model)
    logits(model, inputs)
    assert router_logits(model).shape == (3, *inputs["input_ids"].shape, 2)
