"""What a packed batch costs beside a training step of the tiny anchor on CPU, both timed in turn in one run.

python benchmarks/loading.py --corpora data/corpora --anchor anchor        (a minute)

A step is forward, backward, clipping and AdamW on every parameter of the anchor, 8 windows of 256 tokens, fp32. The
loaders are those of a training run: one source; three sources and a quarter of public text; best fit.
"""

from __future__ import annotations

import argparse
import statistics
import time
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM

from flexmix.documents.corpus import find_split
from flexmix.packing.datamodule import BatchOptions, TextModule
from flexmix.packing.mixture import WeightedWindows
from flexmix.packing.windows import Batch, Packed
from flexo.cpu_threads import keep_freed_memory
from trainers.data import DataOptions, packed_windows
from trainers.loop.module import LitAnchor, LossOptions
from trainers.loop.optimizer import OptimizerOptions

STEPS = 20


def step(lit: LitAnchor, optimizer: torch.optim.Optimizer, batch: Batch) -> None:
    total, _ = lit.next_token(batch)
    torch.autograd.backward(total)
    torch.nn.utils.clip_grad_norm_(lit.model.parameters(), 1.0)
    optimizer.step()
    optimizer.zero_grad()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--corpora", type=Path, default=Path("data/corpora"))
    parser.add_argument("--anchor", type=Path, default=Path("anchor"))
    parser.add_argument("--cache", type=Path, default=Path("data/tokens"))
    parser.add_argument("--domains", nargs=3, default=["math", "code", "creative"])
    arguments = parser.parse_args()
    keep_freed_memory()

    def windows(domain: str, packing: str) -> Packed:
        options = DataOptions(tokens=1, packing=packing, cache=arguments.cache)
        return packed_windows(find_split(arguments.corpora / domain, "train"), arguments.anchor, options)

    def module(packing: str, mixed: bool) -> TextModule:
        sources = [WeightedWindows(windows(domain, packing)) for domain in arguments.domains[: 3 if mixed else 1]]
        options = BatchOptions(8, STEPS, seed=0, public_share=0.25 if mixed else 0.0)
        return TextModule(sources, {}, options, windows("public", packing) if mixed else None)

    model = AutoModelForCausalLM.from_pretrained(arguments.anchor, dtype=torch.float32)
    lit = LitAnchor(model, OptimizerOptions(lr=1e-3), LossOptions(), STEPS, [])
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads, medians of {STEPS}")
    print("| windows | batch | step | batch / step |\n|---|---|---|---|")
    for packing in ("concat", "best_fit"):
        for mixed in (False, True):
            batches = iter(module(packing, mixed).train_dataloader())
            loading, training = [], []
            for _ in range(STEPS):
                start = time.perf_counter()
                batch = next(batches)
                loaded = time.perf_counter()
                step(lit, optimizer, batch)
                loading.append(loaded - start)
                training.append(time.perf_counter() - loaded)
            load, train = statistics.median(loading), statistics.median(training)
            what = f"{packing}, {'three sources and public' if mixed else 'one source'}"
            print(f"| {what} | {1000 * load:.2f} ms | {1000 * train:.0f} ms | {load / train:.2%} |")


if __name__ == "__main__":
    main()
