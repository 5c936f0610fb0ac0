"""Time and memory of an expert's optimisers: a whole training step with each, side by side in one process.

    python benchmarks/optimizers.py                                     # D = 256 as in the sample runs, and D = 1024
    python benchmarks/optimizers.py --hidden 1024 --rows 8 --rounds 5

They take turns, and what is compared is the CPU time of this process, in which other work on the machine hardly counts.
On one thread; a ratio is that of medians.
"""

from __future__ import annotations

import argparse
import time
from statistics import median
from typing import get_args

import torch
from transformers import AutoModelForCausalLM, Olmo2Config

from benchmarks.training import batch, shape
from flexo.cpu_threads import keep_freed_memory
from trainers.expert.paired import pair, trainable_parameters
from trainers.loop.next_token_loss import NextToken
from trainers.loop.optimizer import Kind, OptimizerOptions

LAYERS, VOCABULARY, LENGTH = 2, 4096, 256


def measure(hidden: int, rows: int, rounds: int) -> None:
    model = AutoModelForCausalLM.from_config(Olmo2Config(**shape(hidden, VOCABULARY, LAYERS)))
    directions = [torch.randn(hidden) for _ in range(LAYERS)]
    next_token, tokens = NextToken(pair(model, directions, directions)), batch(VOCABULARY, rows, LENGTH, "cpu")
    named = list(trainable_parameters(model))
    optimizers = {kind: OptimizerOptions(lr=0.0, kind=kind).build(named) for kind in get_args(Kind)}
    passes: list[float] = []
    steps: dict[str, list[float]] = {kind: [] for kind in optimizers}
    for _ in range(rounds + 1):
        begin = time.process_time()
        with torch.autocast("cpu", torch.bfloat16):
            next_token(tokens)[0].backward()
        passes.append(time.process_time() - begin)
        for kind, optimizer in optimizers.items():
            begin = time.process_time()
            optimizer.step()
            steps[kind].append(time.process_time() - begin)
        model.zero_grad()
    forward_backward = median(passes[1:])  # the first round makes what the others find
    trained = sum(parameter.numel() for _, parameter in named)
    for kind, optimizer in optimizers.items():
        held = sum(value.numel() for state in optimizer.state.values() for value in state.values() if value.ndim)
        whole = forward_backward + median(steps[kind][1:])
        ratio = whole / (forward_backward + median(steps["adamw"][1:]))
        share = median(steps[kind][1:]) / whole
        print(
            f"| {hidden} | {rows * LENGTH} | {kind} | {ratio:.2f} | {share:.0%} | {held / trained:.3f} |",
            flush=True,
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--hidden", type=int, nargs="+", default=[256, 1024])
    parser.add_argument("--rows", type=int, nargs="+", default=[2, 16], help="windows of 256 tokens in a step")
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    torch.set_num_threads(1)
    keep_freed_memory()
    print(
        "| D | tokens a step | optimiser | whole step over AdamW's | share of the optimiser | numbers held a weight |"
    )
    print("|---|---|---|---|---|---|")
    for hidden in options.hidden:
        for rows in options.rows:
            measure(hidden, rows, options.rounds)


if __name__ == "__main__":
    main()
