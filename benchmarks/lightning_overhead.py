"""What Lightning costs a step: the fit of `train_expert.py` beside a plain PyTorch loop over the same batches.

    python benchmarks/lightning_overhead.py                 # D 256, 4 layers, V 16,384, fp32
    python benchmarks/lightning_overhead.py --hidden 128 --vocabulary 4096 --rows 8

Both have the same model, loss, optimiser, schedule, clipping and loader. They take turns, run after run; the median of
the steps' times is compared. Checkpoints are off, metrics are written every ten steps.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from functools import partial
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
from lightning.pytorch.loggers import CSVLogger
from training import shape
from transformers import AutoModelForCausalLM, Olmo2Config

from flexmix.packing.datamodule import BatchOptions, TextModule
from flexmix.packing.windows import Windows
from flexo.cpu_threads import keep_freed_memory
from trainers.data import DataOptions
from trainers.entry.hydra_entry import quiet
from trainers.expert.module import LitExpert
from trainers.expert.paired import pair
from trainers.loop.module import LossOptions
from trainers.loop.optimizer import OptimizerOptions
from trainers.loop.run import Run
from trainers.loop.trainer import TrainerOptions

OPTIMIZER, LOSS = OptimizerOptions(lr=1e-4), LossOptions(own_vs_public=0.1)


class Shard:
    """Random tokens in documents of 200, in place of a shard on disk."""

    def __init__(self, tokens: int, vocabulary: int) -> None:
        self.ids = np.random.default_rng(0).integers(1, vocabulary, tokens + 1)
        self.ids[::200] = 0
        self.tokens, self.documents, self.end_of_text = tokens + 1, tokens // 200, 0
        self.conversations = 0


class Stopwatch(LitExpert):
    """Notes when each step begins."""

    def training_step(self, batch: Any, index: int) -> torch.Tensor:
        self.times.append(time.perf_counter())
        return super().training_step(batch, index)


def lit(args: argparse.Namespace) -> Stopwatch:
    torch.manual_seed(0)
    model: Any = AutoModelForCausalLM.from_config(Olmo2Config(**shape(args.hidden, args.vocabulary, 4)))
    rows = [torch.randn(args.hidden) * 0.01 for _ in model.model.layers]
    made = Stopwatch(pair(model, rows, rows), OPTIMIZER, LOSS, args.steps, [])
    made.times = []
    return made


def module(args: argparse.Namespace) -> TextModule:
    windows: Any = Windows(Shard(args.length * args.rows * args.steps, args.vocabulary), args.length, "random")
    return TextModule(windows, {}, BatchOptions(args.rows, args.steps, seed=0, public_share=0.25), windows)


def lightning(args: argparse.Namespace) -> list[float]:
    made = lit(args)
    data = DataOptions(args.length * args.rows * args.steps, length=args.length, batch_size=args.rows)
    trainer = TrainerOptions(precision="32-true", accelerator="cpu", checkpoint_seconds=1e9)
    with tempfile.TemporaryDirectory() as work:
        logger = partial(CSVLogger, name="metrics")
        run = Run(Path(work) / "unwritten", data, OPTIMIZER, LOSS, trainer, logger)
        run.fit(made, module(args), Path(work), "benchmark", 1.0)
    return [later - earlier for earlier, later in pairwise(made.times)]


def plain(args: argparse.Namespace) -> list[float]:
    made, times = lit(args), []
    optimizer = OPTIMIZER.build(made.trained())
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, OPTIMIZER.factor(args.steps))
    for batch in module(args).train_dataloader():
        times.append(time.perf_counter())
        total, _ = made.next_token(batch)
        loss = torch.stack([total, *made._terms(batch).values()]).sum()
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_([parameter for _, parameter in made.trained()], 1.0)
        optimizer.step()
        schedule.step()
    return [later - earlier for earlier, later in pairwise(times)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--hidden", type=int, default=256)
    parser.add_argument("--vocabulary", type=int, default=16384)
    parser.add_argument("--rows", type=int, default=4)
    parser.add_argument("--length", type=int, default=256)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--rounds", type=int, default=4)
    args = parser.parse_args()
    quiet()
    keep_freed_memory()
    times: dict[str, list[float]] = {"plain": [], "lightning": []}
    for _ in range(args.rounds):
        times["plain"] += plain(args)[2:]
        times["lightning"] += lightning(args)[2:]
    print(
        f"D {args.hidden}, V {args.vocabulary}, {args.rows} x {args.length} tokens, {torch.get_num_threads()} threads"
    )
    print(f"Lightning takes {median(times['lightning']) / median(times['plain']) - 1:+.1%} of a plain step")


if __name__ == "__main__":
    main()
