"""How many tokens `flexo-eval` should give a model at once: processor time of `measure`, beside batches of 8192 tokens.

    python benchmarks/measuring.py                # random models, two widths, dense and of eight experts (5 minutes)

All sizes take turns in one process, on the same documents of random tokens. Bits per byte must agree.
"""

from __future__ import annotations

import argparse
import random
import time
from statistics import median
from typing import Any

import torch
from transformers import FlexOlmoConfig, FlexOlmoForCausalLM, Olmo2Config, Olmo2ForCausalLM

from evals.scoring.measure import measure
from evals.scoring.sliding_windows import TokenisedText

VOCABULARY, LAYERS = 4096, 4
WIDTHS = {"384": (384, 512), "1024": (1024, 2816)}  # hidden size, feed-forward size
BATCHES = (8192, 512, 1024, 2048, 4096)  # the first is the measure of the others


def random_model(width: str, experts: int) -> Any:
    hidden, feed_forward = WIDTHS[width]
    common: dict[str, Any] = {
        "vocab_size": VOCABULARY, "hidden_size": hidden, "intermediate_size": feed_forward, "num_hidden_layers": LAYERS,
        "num_attention_heads": hidden // 32, "pad_token_id": 1, "bos_token_id": 0, "eos_token_id": 0,
    }  # fmt: skip
    torch.manual_seed(0)
    if experts:
        return FlexOlmoForCausalLM(FlexOlmoConfig(**common, num_experts=experts, num_experts_per_tok=4)).eval()
    return Olmo2ForCausalLM(Olmo2Config(**common)).eval()


def random_text(tokens: int) -> TokenisedText:
    """Documents of 20 to 1000 tokens."""
    dice = random.Random(0)
    documents: list[list[int]] = []
    while sum(map(len, documents)) < tokens:
        documents.append([dice.randrange(2, VOCABULARY) for _ in range(dice.randint(20, 1000))])
    return TokenisedText(documents, 4 * tokens, 0)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--tokens", type=int, default=4000)
    arguments = parser.parse_args()
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads, medians of {arguments.rounds}")
    print(f"| model | {' | '.join(map(str, BATCHES))} |\n|---|{'---|' * len(BATCHES)}")
    for width in WIDTHS:
        text = random_text(arguments.tokens if width == "384" else arguments.tokens // 8)
        for experts in (0, 8):
            model = random_model(width, experts)
            measure(model, text)  # warms up
            times: dict[int, list[float]] = {size: [] for size in BATCHES}
            bits: dict[int, float] = {}
            for _ in range(arguments.rounds):
                for size in BATCHES:
                    start = time.process_time()
                    bits[size] = measure(model, text, batch_tokens=size).bits_per_byte
                    times[size].append(time.process_time() - start)
            assert max(bits.values()) - min(bits.values()) < 1e-5 * bits[BATCHES[0]], bits
            whole = median(times[BATCHES[0]])
            ratios = " | ".join(f"{median(times[size]) / whole:.2f}" for size in BATCHES)
            print(f"| width {width}, {f'{experts} experts, 4 active' if experts else 'dense'} | {ratios} |", flush=True)


if __name__ == "__main__":
    main()
