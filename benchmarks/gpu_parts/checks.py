"""Whether a device computes what the tests promise on a CPU. Each check raises, or returns a figure to be noted.

They are small models and seconds; `tests/test_gpu_kit.py` runs them on the CPU, and with `-m gpu` on a GPU.
"""

from __future__ import annotations

import copy
import importlib.util
import io
import json
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch.nn.functional import silu
from transformers import AutoModelForCausalLM, FlexOlmoConfig, FlexOlmoForCausalLM, Olmo2Config

from benchmarks.quantize import packed
from benchmarks.training import autocast, batch, shape
from flexmix.packing.attention import model_inputs
from inference.select import select_experts
from merge.formats.quantization import Scheme
from trainers.distributed import shard
from trainers.expert.paired import pair, trainable_parameters
from trainers.expert.paired_ffn import paired_ffn
from trainers.loop.next_token_loss import NextToken
from trainers.loop.optimizer import OptimizerOptions

Figure = float | str
HIDDEN, VOCABULARY, LAYERS = 128, 512, 3


class Skipped(Exception):  # noqa: N818 - nothing went wrong
    """A check that cannot be made here, and why."""


def dense(device: str, dtype: torch.dtype = torch.float32, attention: str = "sdpa") -> Any:
    torch.manual_seed(0)
    config = Olmo2Config(**shape(HIDDEN, VOCABULARY, LAYERS))
    made: Any = AutoModelForCausalLM.from_config(config, dtype=dtype, attn_implementation=attention)
    return made.to(device)


def merged(device: str, folder: Path, experts: int = 3) -> Any:
    """A model that looks like a merged one to `select_experts`."""
    torch.manual_seed(0)
    config = FlexOlmoConfig(**shape(HIDDEN, VOCABULARY, LAYERS), num_experts=experts, num_experts_per_tok=2)
    model: Any = FlexOlmoForCausalLM(config).eval()
    names = ["public", *(f"domain{n}" for n in range(1, experts))]
    (folder / "manifest.json").write_text(
        json.dumps({"format": "flexo.manifest", "version": 1, "experts": [{"domain": name} for name in names]})
    )
    model.name_or_path = str(folder)
    return model.to(device)


def trained_pair(device: str, dtype: torch.dtype) -> tuple[NextToken, torch.optim.Optimizer]:
    model = dense(device, dtype)
    rows = [torch.randn(HIDDEN, generator=torch.Generator().manual_seed(n)) * 0.01 for n in range(LAYERS)]
    pair(model, rows, rows).to(device)
    return NextToken(model.train()), OptimizerOptions(lr=1e-3).build(trainable_parameters(model))


def step(next_token: NextToken, optimizer: torch.optim.Optimizer, device: str) -> float:
    with autocast(device, torch.bfloat16):
        loss, _ = next_token(batch(VOCABULARY, 2, 64, device))
    loss.backward()
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    return float(loss.detach())


@torch.no_grad()
def documents_apart(device: str, attention: str) -> Figure:
    """The second document's hidden states, whatever stands in the first."""
    if attention.startswith("flash") and not (device == "cuda" and importlib.util.find_spec("flash_attn")):
        raise Skipped("the package flash_attn is not installed, or there is no GPU")
    if attention == "flex_attention" and device == "cpu":
        raise Skipped("it is compiled, which takes minutes on a CPU, and is tested there")
    model = dense(device, torch.bfloat16 if device == "cuda" else torch.float32, attention)
    inputs = batch(VOCABULARY, 2, 64, device)
    inputs["position_ids"] = torch.cat([torch.arange(40), torch.arange(24)]).expand(2, 64).to(device)
    other = inputs | {"input_ids": inputs["input_ids"].clone()}
    other["input_ids"][:, :40] = 7
    first, second = (
        model.model(**model_inputs(one, attention), use_cache=False).last_hidden_state for one in (inputs, other)
    )
    assert not torch.equal(first[:, :40], second[:, :40]), "the change did not reach the model"
    assert torch.equal(first[:, 40:], second[:, 40:]), "a document attends to the one before it"
    return "bit-equal"


def pair_against_autograd(device: str) -> Figure:
    """The hand-written backward in bfloat16 against autograd in float64: the worst relative error of a gradient."""
    dice = torch.Generator().manual_seed(0)
    sizes = [(256, 128), (256, 1), *2 * [(512, 128), (512, 128), (128, 512)]]
    given = [torch.randn(size, generator=dice) / (size[-1] ** 0.5 if n > 1 else 1) for n, size in enumerate(sizes)]
    given[1] = given[1].sigmoid()

    def gradients(dtype: torch.dtype, by_hand: bool) -> list[torch.Tensor]:
        parts = [part.to(device, torch.float32 if n == 1 and by_hand else dtype) for n, part in enumerate(given)]
        x, p, *weights = (part.requires_grad_(not 2 <= n < 5) for n, part in enumerate(parts))
        if by_hand:
            y = paired_ffn(x, p, tuple(weights[:3]), tuple(weights[3:]))
        else:
            y0, y1 = ((silu(x @ g.T) * (x @ u.T)) @ d.T for g, u, d in (weights[:3], weights[3:]))
            y = y0 + p * (y1 - y0)
        return [part.double() for part in torch.autograd.grad(y.float().square().sum(), [x, p, *weights[3:]])]

    pairs = zip(gradients(torch.bfloat16, True), gradients(torch.float64, False), strict=True)
    worst = max(float((found - true).norm() / true.norm()) for found, true in pairs)
    assert worst < 0.02, f"a gradient is {worst:.1%} off"
    return worst


def resumed_bit_for_bit(device: str) -> Figure:
    """Six steps, against three, a checkpoint, and three more in another model."""
    whole, optimizer = trained_pair(device, torch.bfloat16)
    losses, kept = [], io.BytesIO()
    for n in range(6):
        if n == 3:
            torch.save([whole.state_dict(), optimizer.state_dict()], kept)
        losses.append(step(whole, optimizer, device))
    again, optimizer = trained_pair(device, torch.bfloat16)
    state = torch.load(io.BytesIO(kept.getvalue()), weights_only=True, map_location=device)
    again.load_state_dict(state[0])
    optimizer.load_state_dict(state[1])
    assert [step(again, optimizer, device) for _ in range(3)] == losses[3:], "losses differ after the checkpoint"
    for name, value in whole.state_dict().items():
        assert torch.equal(value, again.state_dict()[name]), f"{name} differs"
    return "bit-equal"


@torch.inference_mode()
def selection_bit_for_bit(device: str) -> Figure:
    """Two experts selected of three, against a model that has no third."""
    with tempfile.TemporaryDirectory() as folder:
        three, two = merged(device, Path(folder)), merged(device, Path(folder), 2)
        merged(device, Path(folder))  # the manifest of three
        kept = {
            name: value[:2] if ".mlp.experts." in name or name.endswith("mlp.gate.weight") else value
            for name, value in three.state_dict().items()
        }
        two.load_state_dict(kept)
        x = batch(VOCABULARY, 2, 48, device)["input_ids"]
        with select_experts(three, ["public", "domain1"]):
            selected = three(x).logits
        assert torch.equal(selected, two(x).logits), "other logits than without the third expert"
    return "bit-equal"


@torch.inference_mode()
def static_cache(device: str) -> Figure:
    """Greedy text with a static cache, which transformers compiles on a GPU, against a growing one."""
    with tempfile.TemporaryDirectory() as folder:
        model = merged(device, Path(folder))
    x = batch(VOCABULARY, 1, 12, device)["input_ids"]
    options = {"max_new_tokens": 16, "min_new_tokens": 16, "do_sample": False}
    grown = model.generate(x, **options)
    assert torch.equal(model.generate(x, cache_implementation="static", **options), grown), "other text"
    return "the same text"


@torch.inference_mode()
def compiled(device: str) -> Figure:
    """The largest difference of logits of compiled layers."""
    if device != "cuda":
        raise Skipped("compiling takes long on a CPU, and is tested there")
    model = dense(device, torch.bfloat16)
    x = batch(VOCABULARY, 2, 64, device)["input_ids"]
    before = model(x).logits.float()
    for layer in model.model.layers:
        layer.compile()
    apart = float((model(x).logits.float() - before).abs().max() / before.std())
    assert apart < 0.1, f"logits are {apart:.2f} standard deviations off"
    return apart


@torch.inference_mode()
def quantised_reload(device: str) -> Figure:
    """Packed experts on the device against the same on the CPU: the largest difference of logits."""
    with tempfile.TemporaryDirectory() as folder:
        model = merged("cpu", Path(folder), 2)
    twin, x = packed(model, Scheme(4, 32)), batch(VOCABULARY, 1, 32, "cpu")["input_ids"]
    expected = twin(x).logits
    kept = io.BytesIO()
    torch.save(twin.state_dict(), kept)
    other = copy.deepcopy(twin).to(device)
    other.load_state_dict(torch.load(io.BytesIO(kept.getvalue()), weights_only=True, map_location=device))
    apart = float((other(x.to(device)).logits.cpu() - expected).abs().max() / expected.std())
    assert apart < 0.02, f"logits are {apart:.3f} standard deviations off"
    return apart


def sharded_on_one_device(device: str) -> Figure:
    """Three steps under FSDP2 on one device, against the same without: the largest relative difference of a loss."""
    plain, optimizer = trained_pair(device, torch.float32)
    expected = [step(plain, optimizer, device) for _ in range(3)]
    store = dist.HashStore()  # type: ignore[attr-defined]  # public, but not in __all__
    dist.init_process_group("nccl" if device == "cuda" else "gloo", store=store, rank=0, world_size=1)
    try:
        mesh = dist.device_mesh.init_device_mesh(device, (1,))
        cut, _ = trained_pair(device, torch.float32)
        shard(cut, cut.model.model.layers, mesh)
        optimizer = OptimizerOptions(lr=1e-3).build(trainable_parameters(cut.model))
        found = [step(cut, optimizer, device) for _ in range(3)]
    finally:
        dist.destroy_process_group()
    apart = max(abs(one / other - 1) for one, other in zip(found, expected, strict=True))
    assert apart < 1e-3, f"losses {found}, expected {expected}"
    return apart


CHECKS: dict[str, Callable[[str], Figure]] = {
    "documents apart, sdpa": lambda device: documents_apart(device, "sdpa"),
    "documents apart, flash": lambda device: documents_apart(device, "flash_attention_2"),
    "documents apart, flex": lambda device: documents_apart(device, "flex_attention"),
    "hand-written pair, bf16": pair_against_autograd,
    "resume": resumed_bit_for_bit,
    "selection": selection_bit_for_bit,
    "static cache": static_cache,
    "compiled layers": compiled,
    "int4 saved and loaded": quantised_reload,
    "sharded on one device": sharded_on_one_device,
}


def said(check: Callable[[str], Figure], device: str) -> str:
    """What became of a check, as a line of a report."""
    try:
        figure = check(device)
    except Skipped as skipped:
        return f"not made: {skipped}"
    except Exception as error:  # one failure must not hide the others
        return f"FAILED: {type(error).__name__}: {str(error)[:300]}"
    return figure if isinstance(figure, str) else f"{figure:.2g}"
