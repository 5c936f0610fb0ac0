"""How fast a device trains an expert, generates and merges; sizes are those of published anchors, or a toy's."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import torch
from transformers import AutoModelForCausalLM, FlexOlmoConfig, FlexOlmoForCausalLM

from benchmarks import merge_inputs, merging, training
from benchmarks.attribution import ratios
from inference.packed_experts import PackedExperts
from inference.select import select_experts
from merge.formats.architecture import Architecture
from merge.formats.quantization import Scheme
from trainers.expert.cost_plan import Load, plan_cost, whole_flops_per_token
from trainers.loop.gpu_specs import peak_flops

Note = Callable[..., None]
# D, F, L, heads, V, tokens of a window
SHAPES = {
    "toy": (64, 128, 2, 2, 512, 64),
    "1B": (2048, 8192, 16, 16, 100_352, 4096),
    "7B": (4096, 11_008, 32, 32, 100_352, 4096),
}


def config_of(size: str) -> dict[str, Any]:
    hidden, ffn, layers, heads, vocabulary, length = SHAPES[size]
    return training.shape(hidden, vocabulary, layers) | {
        "intermediate_size": ffn, "num_attention_heads": heads, "num_key_value_heads": heads,
        "max_position_embeddings": length,
    }  # fmt: skip


def architecture(size: str) -> Architecture:
    hidden, ffn, layers, heads, vocabulary, _ = SHAPES[size]
    return Architecture(vocabulary, hidden, ffn, layers, heads, heads, False, 1e-6, 500_000.0)


def expert_step(note: Note, device: str, size: str, way: str, rows: int, recomputed: bool) -> None:
    """Tokens a second of one way of training, its share of the peak, and its most memory.

    The FLOPs of `ours` and `adafactor` are those that an expert cannot do without; `published` is judged by the same.
    """
    length, arch, config = SHAPES[size][-1], architecture(size), config_of(size)
    given: dict[str, Any] = {"recomputed": recomputed}
    make = {"published": training.peer, "dense": training.dense}.get(way, training.ours)
    if way == "adafactor":
        given["kind"] = "adafactor"
    load = Load(
        tokens=1, length=length, rows=rows, recomputed=recomputed, kind="adafactor" if way == "adafactor" else "adamw"
    )
    flops = plan_cost(arch, Load(tokens=1, length=length, rows=rows)).flops_per_token
    if way == "dense":
        flops = whole_flops_per_token(arch, length)
    elif way != "published":
        note(planned_bytes=plan_cost(arch, load).memory)
    step, inputs = make(config, torch.bfloat16, device, **given), training.batch(SHAPES[size][-2], rows, length, device)
    step(inputs)
    seconds: list[float] = []
    for _ in range(8 if device == "cuda" else 1):
        seconds.append(training.timed(lambda: step(inputs), device)[0])
        rate = rows * length / median(seconds)
        note(tokens_per_second=rate, flops_per_token=flops, steps=len(seconds))
        if (peak := peak_flops(1)) is not None:
            note(mfu=rate * flops / peak)
        if device == "cuda":
            note(peak_bytes=torch.cuda.max_memory_allocated())


def merged_model(size: str, device: str, folder: Path, experts: int, top_k: int) -> Any:
    """A model of random weights in bfloat16 that looks like a merged one."""
    names = ["public", *(f"domain{n}" for n in range(1, experts))]
    manifest = {"format": "flexo.manifest", "version": 1, "experts": [{"domain": name} for name in names]}
    (folder / "manifest.json").write_text(json.dumps(manifest))
    config = FlexOlmoConfig(**config_of(size), num_experts=experts, num_experts_per_tok=top_k, dtype=torch.bfloat16)
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.bfloat16)
    try:
        with torch.device(device):
            model: Any = FlexOlmoForCausalLM(config)
    finally:
        torch.set_default_dtype(before)
    model.name_or_path = str(folder)
    return model.eval()


def pack(model: Any, whole: list[Any], bits: int) -> None:
    """Packed experts of random values in the place of the `whole` ones: for their speed, what they say is all one."""
    for layer, experts in zip(model.model.layers, whole, strict=True):
        layer.mlp.experts = PackedExperts(experts, Scheme(bits, 32 if model.config.hidden_size < 128 else 128))
        for name, values in layer.mlp.experts.named_parameters():
            values.data.random_(0, 1 << 16) if name.endswith("_packed") else values.data.fill_(1e-4)


@torch.inference_mode()
def generation(note: Note, device: str, size: str, experts: int, tokens: int) -> None:
    """Tokens a second by selection and batch, attribution's cost, and packed experts."""
    with tempfile.TemporaryDirectory() as folder:
        model = merged_model(size, device, Path(folder), experts, min(4, experts))
        selections = {"all": None, "two": ["public", "domain1"], "public": ["public"]}

        def rate(rows: int) -> float:
            x_BS = training.batch(SHAPES[size][-2], rows, 32, device)["input_ids"]
            options = {"max_new_tokens": tokens, "min_new_tokens": tokens, "do_sample": False}
            model.generate(x_BS, **options)
            return rows * tokens / training.timed(lambda: model.generate(x_BS, **options), device)[0]

        for rows in (1, 8):
            for name, chosen in selections.items():
                if chosen is None:
                    note(**{f"{name}, batch of {rows}": rate(rows)})
                else:
                    with select_experts(model, chosen):
                        note(**{f"{name}, batch of {rows}": rate(rows)})
            note(**{f"attributed / plain, batch of {rows}": median(ratios(model, rows, tokens, 3)[0])})
        whole = [layer.mlp.experts for layer in model.model.layers]
        for bits in (8, 4):
            pack(model, whole, bits)
            note(**{f"int{bits}, batch of {rows}": rate(rows) for rows in (1, 8)})
            if device == "cuda":
                note(**{f"int{bits}, bytes": torch.cuda.memory_allocated()})


def merge(note: Note, device: str, sizes: merge_inputs.Sizes, work: Path) -> None:
    """A merge in memory beside `cp` of the same bytes, and the merged model's way to the device."""
    with tempfile.TemporaryDirectory(dir=work) as name:
        folder = Path(name)
        files = merging.make(folder / "in", sizes, sparse=False)
        note(bytes=sum(path.stat().st_size for path in files))
        note(cp_seconds=merging._copy(files, folder / "copy").wall)
        for words in ([], ["--no-verify"]):
            note(**{f"merge {''.join(words)}".strip(): merging.measured(merging.merge(folder / "in", *words)).wall})

        def load() -> Any:
            return AutoModelForCausalLM.from_pretrained(folder / "in/merged").to(device)

        note(load_seconds=training.timed(load, device)[0])


def machine(note: Note, device: str) -> None:
    """What is here, and how fast a plain product and a plain copy are: the two ceilings."""
    note(python=sys.version.split()[0], torch=torch.__version__, threads=torch.get_num_threads())
    if device == "cuda":
        properties = torch.cuda.get_device_properties(0)
        note(gpu=properties.name, memory=properties.total_memory)
        query = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
        note(driver=subprocess.run(query, capture_output=True, text=True).stdout.strip())
    side = 8192 if device == "cuda" else 256
    a, b = (torch.randn(side, side, device=device).bfloat16() for _ in range(2))
    big = torch.randn(1 << (28 if device == "cuda" else 20), device=device)

    def best(work: Callable[[], Any]) -> float:
        work()
        return min(training.timed(work, device)[0] for _ in range(5))

    note(bf16_flops=2 * side**3 / best(lambda: a @ b), copy_bytes_per_second=2 * 4 * big.numel() / best(big.clone))
    note(at=time.strftime("%Y-%m-%d %H:%M:%S", time.gmtime()))
