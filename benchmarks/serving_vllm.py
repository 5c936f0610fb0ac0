"""What entitlements cost in vLLM: the plugin against plain vLLM, on the same requests, in one process.

    vllm/bin/python benchmarks/serving_vllm.py MODEL [--rounds 5]

In pairs, one after the other in each round: tokens of answers for each CPU second, plain over all experts, and with the
plugin over all experts and over mixed sets. It runs in vLLM's environment (`make vllm` makes one) and needs nothing of
flexo but the plugin. Even work is 33 tokens in and 64 out; uneven is 16 to 121 in and 8 to 96 out.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import statistics
import time
from pathlib import Path
from typing import Any

os.environ |= {"VLLM_ENABLE_V1_MULTIPROCESSING": "0", "VLLM_LOGGING_LEVEL": "WARNING", "HF_HUB_OFFLINE": "1"}

import vllm
from flexo_vllm.process import engine_of

MOST = 32  # requests at once


def requests(experts: int, vocabulary: int, uneven: bool, count: int = 64) -> list[tuple[list[int], int, list[bool]]]:
    """Tokens of a prompt, of its answer, and the experts of a set, by turns one of four."""
    dice = random.Random(1)
    sets = [[n == 0 for n in range(experts)], [n == experts - 1 for n in range(experts)],
            [n < 2 for n in range(experts)], [True] * experts]  # fmt: skip
    found = []
    for n in range(count):
        length, most = (16 + 15 * (n % 8), 8 + 11 * (n % 9)) if uneven else (33, 64)
        found.append(([dice.randrange(3, vocabulary) for _ in range(length)], most, sets[n % 4]))
    return found


def answered(engine: Any, asked: list[tuple[list[int], int, list[bool]]], entitled: str) -> float:
    """Tokens of answers for each CPU second; `entitled` is `plain`, `all` or `mixed`."""
    began, made = time.process_time(), 0
    for n, (tokens, most, allowed) in enumerate(asked):
        allowed = allowed if entitled == "mixed" else [True] * len(allowed)
        given = {} if entitled == "plain" else {"extra_args": {"flexo": allowed}}
        params = vllm.SamplingParams(temperature=0, max_tokens=most, ignore_eos=True, detokenize=False, **given)
        engine.add_request(str(n), vllm.TokensPrompt(prompt_token_ids=tokens, cache_salt=str(time.time())), params)
    while engine.has_unfinished_requests():
        outputs = engine.step()
        if entitled != "plain":
            engine.collective_rpc("flexo_shares")
        made += sum(len(output.outputs[0].token_ids) for output in outputs if output.finished)
    return made / (time.process_time() - began)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("--rounds", type=int, default=5)
    given = parser.parse_args()
    config = json.loads((given.model / "config.json").read_text())
    experts = config["num_experts"]
    arguments = {"model": str(given.model), "dtype": "float32", "enforce_eager": True, "max_model_len": 512,
                 "max_num_seqs": MOST, "max_num_batched_tokens": 1024, "block_size": 32, "num_gpu_blocks_override": 512,
                 "gpu_memory_utilization": 0.05}  # fmt: skip
    plain = vllm.LLMEngine.from_engine_args(
        vllm.EngineArgs(**arguments, skip_tokenizer_init=True, async_scheduling=False)
    )
    setting = {"experts": experts, "counted": [True] * config["num_hidden_layers"]}
    ours = engine_of({"arguments": arguments, "setting": setting})
    kinds = {"plain": plain, "all": ours, "mixed": ours}
    for work in ("even", "uneven"):
        asked = requests(experts, config["vocab_size"], work == "uneven")
        for engine in (plain, ours):
            answered(engine, asked[:8], "plain" if engine is plain else "all")
        rates = [{kind: answered(kinds[kind], asked, kind) for kind in kinds} for _ in range(given.rounds)]
        for kind in ("all", "mixed"):
            ratios = [rate[kind] / rate["plain"] for rate in rates]
            print(f"{work}: {kind} over plain {statistics.median(ratios):.3f} ({min(ratios):.3f} to {max(ratios):.3f})")
        print("   tokens a CPU second:", {kind: round(statistics.median(r[kind] for r in rates)) for kind in kinds})


if __name__ == "__main__":
    main()
