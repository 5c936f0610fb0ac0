from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers.integrations.moe import ALL_EXPERTS_FUNCTIONS

from flexo.errors import InputError, ModelFolderError
from inference.load import load_model
from inference.select import expert_names, select_experts
from inference.selected_blocks import RowsBlock
from tests.inference.models import DOMAINS, load, merge_domains

Make = Callable[..., Path]
X = torch.randint(0, 96, (2, 40), generator=torch.Generator().manual_seed(0))
GPU_ONLY = {"deepgemm", "sonicmoe"}
IMPLEMENTATIONS = sorted({"eager", *ALL_EXPERTS_FUNCTIONS} - GPU_ONLY)


@torch.no_grad()
def logits(model: Any) -> torch.Tensor:
    found: torch.Tensor = model(X).logits
    return found


def state(model: Any) -> dict[str, Any]:
    """All that a selection could change: parameters by identity, and every number."""
    numbers = {
        f"{name}.{key}": value
        for name, module in model.named_modules()
        for key, value in vars(module).items()
        if isinstance(value, int | float)
    }
    parameters = {name: id(parameter) for name, parameter in model.named_parameters()}
    return numbers | parameters | model.config.to_dict()


def test_implementations_are_those_that_transformers_offers() -> None:
    assert set(IMPLEMENTATIONS) >= {"eager", "grouped_mm", "batched_mm"}


@pytest.mark.parametrize(
    ("names", "top_k"), [(["public", "news"], None), (["code", "public", "math"], None), (["math", "code"], 1)]
)
def test_what_is_computed_is_bit_for_bit_a_merge_without_the_others(
    merged: Path, make_expert: Make, tmp_path: Path, names: list[str], top_k: int | None
) -> None:
    kept = [domain for domain in DOMAINS if domain in names]
    folder = merge_domains(make_expert, tmp_path / "without", kept, top_k=top_k or len(names))
    if "public" not in names:
        folder = without_public(folder)
    model, without = load(merged), load(folder)
    assert without.config.num_experts == len(names)
    for implementation in IMPLEMENTATIONS:
        for either in (model, without):
            either.set_experts_implementation(implementation)
            assert either.config._experts_implementation == implementation
        before = logits(model)
        with select_experts(model, names, top_k) as selected:
            assert selected is model
            assert torch.equal(logits(model), logits(without)), implementation
            one, other = (m(X, labels=X, output_router_logits=True) for m in (model, without))
            assert torch.equal(one.loss, other.loss) and torch.equal(one.aux_loss, other.aux_loss)
            assert (logits(model) - before).abs().max() > 1e-2
        assert torch.equal(logits(model), before)


def without_public(folder: Path) -> Path:
    """A merged folder whose expert 0 is taken out by hand, as no merge would do it."""
    from safetensors.torch import load_file, save_file

    path = folder / "model.safetensors"
    tensors = {}
    for name, tensor in load_file(path).items():
        before, part, after = name.partition(".experts.")
        number, _, rest = after.partition(".")
        if name.endswith("mlp.gate.weight"):
            tensors[name] = tensor[1:].contiguous()
        elif not part:
            tensors[name] = tensor
        elif int(number):
            tensors[f"{before}{part}{int(number) - 1}.{rest}"] = tensor
    save_file(tensors, path, {"format": "pt"})
    config = json.loads((folder / "config.json").read_text())
    config["num_experts"] -= 1
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def test_generated_text_is_that_of_a_merge_without_the_others(merged: Path, make_expert: Make, tmp_path: Path) -> None:
    model = load(merged)
    without = load(merge_domains(make_expert, tmp_path / "without", ["news"]))
    options: dict[str, Any] = {"max_new_tokens": 20, "do_sample": False}
    for cache in ({}, {"cache_implementation": "static"}):
        with select_experts(model, ["public", "news"]):
            found = model.generate(X[:1, :5], **options, **cache)
        assert torch.equal(found, without.generate(X[:1, :5], **options, **cache))


def test_public_alone_is_the_anchor(merged: Path, tiny_anchor: Path) -> None:
    model, expected = load(merged), logits(load(tiny_anchor))
    with select_experts(model, ["public"]):
        torch.testing.assert_close(logits(model), expected, rtol=0, atol=1e-5)
    assert (logits(model) - expected).abs().max() > 1e-2


def test_all_experts_are_the_model_itself_and_order_does_not_matter(merged: Path) -> None:
    model = load(merged)
    before = logits(model)
    with select_experts(model, ["code", "public", "news", "math"]):
        assert torch.equal(logits(model), before)
    with select_experts(model, ["public", "math"]):
        one = logits(model)
    with select_experts(model, ["math", "public"]):
        assert torch.equal(logits(model), one)


def test_top_k_is_the_models_own_but_at_most_all_chosen(merged: Path) -> None:
    model = load(merged)
    for names, given, expected in (
        (["public", "math", "news", "code"], None, 3),
        (["public", "math"], None, 2),
        (["public", "math", "news", "code"], 4, 4),
        (["public", "math"], 1, 1),
    ):
        with select_experts(model, names, given):
            assert model.config.num_experts_per_tok == model.num_experts_per_tok == expected
            assert model.config.num_experts == model.num_experts == len(names)
            output = model(X, output_router_logits=True)
            assert {tuple(part.shape) for part in output.router_logits} == {(X.numel(), len(names))}
            assert {layer.mlp.gate.top_k for layer in model.model.layers} == {expected}


@pytest.mark.parametrize("failure", [None, RuntimeError, KeyboardInterrupt, SystemExit])
def test_everything_is_restored_also_when_the_block_raises(merged: Path, failure: type[BaseException] | None) -> None:
    model = load(merged)
    before, weights = state(model), {name: tensor.clone() for name, tensor in model.state_dict().items()}
    if failure is None:
        with select_experts(model, ["public", "code"], 1):
            assert state(model) != before
    else:
        with pytest.raises(failure), select_experts(model, ["public", "code"], 1):
            raise failure
    assert state(model) == before
    assert all(torch.equal(tensor, weights[name]) for name, tensor in model.state_dict().items())


def test_everything_is_restored_when_a_block_cannot_be_made(merged: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import inference.select

    model = load(merged)
    before, made = state(model), []

    def failing(*arguments: Any) -> RowsBlock:
        made.append(arguments)
        if len(made) == 2:
            raise MemoryError
        return RowsBlock(*arguments)

    monkeypatch.setattr(inference.select, "RowsBlock", failing)
    with pytest.raises(MemoryError), select_experts(model, ["public"]):
        raise AssertionError("not reached")
    assert state(model) == before


def test_no_weights_of_experts_are_copied(merged: Path) -> None:
    model = load(merged)
    experts = [layer.mlp.experts for layer in model.model.layers]
    for names in (["public", "math"], [["public"], ["math", "code"]]):
        with select_experts(model, names):
            assert [layer.mlp.experts for layer in model.model.layers] == experts
            assert all(len(part.gate_up_proj) == len(part.down_proj) == 4 for part in experts)


def test_a_selection_works_on_a_model_that_is_trained_or_in_inference_mode(merged: Path) -> None:
    model = load(merged)
    with torch.inference_mode(), select_experts(model, ["public", "math"]):
        one = logits(model)
    with select_experts(model, ["public", "math"]):
        assert torch.equal(logits(model), one)
    model(X).logits.sum().backward()
    assert model.model.layers[0].mlp.gate.weight.grad is not None


@pytest.mark.parametrize(
    ("names", "top_k", "said"),
    [
        (["public", "maths"], None, r"'maths': no such expert in this model. It has public, math, news, code. Did you "
                                    r"mean 'math'\?"),
        (["public", "medicine"], None, r"'medicine': no such expert in this model. It has public, math, news, code\.$"),
        ([""], None, r"'': no such expert"),
        ([], None, r"experts \(none\): expected at least one, each named once"),
        (["math", "public", "math"], None, r"experts math, public, math: expected at least one, each named once"),
        (["public", "math"], 0, r"top_k 0: 2 experts are selected, expected 1 to 2"),
        (["public", "math"], 3, r"top_k 3: 2 experts are selected, expected 1 to 2"),
    ],
)  # fmt: skip
def test_selections_that_cannot_be_are_refused(merged: Path, names: list[str], top_k: int | None, said: str) -> None:
    model = load(merged)
    before = state(model)
    with pytest.raises(InputError, match=said), select_experts(model, names, top_k):
        raise AssertionError("not reached")
    assert state(model) == before


def test_a_selection_inside_another_is_refused(merged: Path) -> None:
    """The names would mean other experts there."""
    model = load(merged)
    with select_experts(model, ["public", "news", "code"]):
        inside = state(model)
        with pytest.raises(InputError, match="selected already"), select_experts(model, ["math"]):
            raise AssertionError("not reached")
        assert state(model) == inside


def test_names_come_from_the_manifest(merged: Path, tiny_anchor: Path) -> None:
    assert expert_names(load(merged)) == ["public", "math", "news", "code"]
    model, _ = load_model(tiny_anchor)
    with pytest.raises(ModelFolderError, match=r"anchor: no manifest.json. Is it a folder made by flexo-merge\?"):
        expert_names(model)
