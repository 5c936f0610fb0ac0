"""What experts in 8 and 4 bits save in memory and cost in time, beside the same model unquantised.

    python benchmarks/quantize.py                   # random models of eight experts, four active (two minutes)

The three take turns in one process: a text of 256 tokens read, then single tokens one after another. Reported are
medians of processor time, as ratios to the unquantised model, and the bytes of all parameters.
"""

from __future__ import annotations

import argparse
import copy
import time
from statistics import median
from typing import Any

import torch
from transformers import FlexOlmoConfig, FlexOlmoForCausalLM

from inference.packed_experts import PackedExperts
from merge.formats.quantization import Scheme
from merge.tensor_io.torch_tensors import NAMES

SIZES = {"small": (512, 2048, 4), "1B's width": (2048, 8192, 1)}  # hidden size, feed-forward size, layers
EXPERTS, ACTIVE, PROMPT, SINGLE = 8, 4, 256, 4


def random_model(size: str, dtype: torch.dtype) -> Any:
    hidden, feed_forward, layers = SIZES[size]
    config = FlexOlmoConfig(
        vocab_size=4096, hidden_size=hidden, intermediate_size=feed_forward, num_hidden_layers=layers,
        num_attention_heads=hidden // 64, num_key_value_heads=hidden // 64, num_experts=EXPERTS,
        num_experts_per_tok=ACTIVE, pad_token_id=1, bos_token_id=0, eos_token_id=0, dtype=dtype,
    )  # fmt: skip
    torch.manual_seed(0)
    return FlexOlmoForCausalLM(config).to(dtype).eval()


def packed(model: Any, scheme: Scheme) -> Any:
    """The same model with packed experts; what is not quantised is shared with it."""
    shared = {id(parameter): parameter for parameter in model.parameters()}
    twin = copy.deepcopy(model, shared)
    for layer, whole in zip(twin.model.layers, model.model.layers, strict=True):
        layer.mlp.experts = PackedExperts(whole.mlp.experts, scheme)
        for name in ("gate_up_proj", "down_proj"):
            weight = getattr(whole.mlp.experts, name).detach()
            for expert, matrix_RC in enumerate(weight):
                made = scheme.quantize(matrix_RC.float().numpy(), NAMES[weight.dtype])
                words = torch.frombuffer(bytearray(scheme.pack(made[0])), dtype=torch.int32)
                target = getattr(layer.mlp.experts, name + "_packed").data[expert]
                target.copy_(words.view(target.shape))
                getattr(layer.mlp.experts, name + "_scale").data[expert].copy_(torch.from_numpy(made[1]))
    return twin


@torch.inference_mode()
def seconds(model: Any) -> tuple[float, float]:
    """Processor time of reading a prompt, and of one token after it."""
    x_BT = torch.randint(2, 4096, (1, PROMPT + SINGLE), generator=torch.Generator().manual_seed(0))
    start = time.process_time()
    cache = model(input_ids=x_BT[:, :PROMPT], use_cache=True).past_key_values
    read = time.process_time()
    for n in range(PROMPT, PROMPT + SINGLE):
        model(input_ids=x_BT[:, n : n + 1], past_key_values=cache, use_cache=True)
    return read - start, (time.process_time() - read) / SINGLE


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--group-size", type=int, default=128)
    arguments = parser.parse_args()
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads, medians of {arguments.rounds}")
    print("| model | weights | parameters | of it | a prompt of 256 | a token | ms |\n|---|---|---|---|---|---|---|")
    for size in SIZES:
        for dtype in (torch.float32, torch.bfloat16):
            whole = random_model(size, dtype)
            name = str(dtype).removeprefix("torch.")
            models = {name: whole} | {f"int{b}": packed(whole, Scheme(b, arguments.group_size)) for b in (8, 4)}
            times: dict[str, list[tuple[float, float]]] = {kind: [] for kind in models}
            for _ in range(arguments.rounds):
                for kind, model in models.items():
                    times[kind].append(seconds(model))
            plain = [median(column) for column in zip(*times[name], strict=True)]
            held = {k: sum(p.numel() * p.element_size() for p in m.parameters()) for k, m in models.items()}
            for kind in models:
                prompt, token = (median(column) for column in zip(*times[kind], strict=True))
                print(
                    f"| {size}, {name} | {kind} | {held[kind] / 1e6:,.0f} MB | {held[kind] / held[name]:.2f} | "
                    f"{prompt / plain[0]:.2f} | {token / plain[1]:.2f} | {1000 * token:.0f} |"
                )


if __name__ == "__main__":
    main()
