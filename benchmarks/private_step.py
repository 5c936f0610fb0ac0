"""A step with differential privacy beside the same step without, and beside opacus where that is installed.

    python benchmarks/private_step.py
    python benchmarks/private_step.py --hidden 512 --windows 16 --length 256 --rounds 9

plain     the paired layer, backward by hand, gradients of the batch
private   the same, norms of each unit's gradient and the bounded sum (`trainers.expert.unit_gradients`), without noise
opacus    ghost clipping (`GradSampleModuleFastGradientClipping`) over the same pair written with `nn.Linear`

They take turns, step after step. A ratio is the median over the rounds, of processor time in user mode. Peak memory is
that of a process of its own for each, above what it had before its first step.
"""

from __future__ import annotations

import argparse
import copy
import multiprocessing
import resource
import time
from collections.abc import Callable
from statistics import median
from typing import Any

import torch
from torch import nn
from torch.nn.functional import silu
from transformers import AutoModelForCausalLM, Olmo2Config

from trainers.expert.paired import PairOptions, pair, pairs, trainable_parameters
from trainers.expert.unit_gradients import UnitGradients
from trainers.loop.next_token_loss import NextToken

Step = Callable[[], None]


def inputs(arguments: argparse.Namespace) -> dict[str, torch.Tensor]:
    draw = torch.Generator().manual_seed(0)
    ids = torch.randint(arguments.vocabulary, (arguments.windows, arguments.length + 1), generator=draw)
    places = torch.arange(arguments.length).expand(arguments.windows, arguments.length)
    return {"input_ids": ids[:, :-1].contiguous(), "labels": ids[:, 1:].contiguous(), "position_ids": places}


def anchor(arguments: argparse.Namespace) -> tuple[Any, list[torch.Tensor]]:
    torch.manual_seed(0)
    config = Olmo2Config(
        vocab_size=arguments.vocabulary, hidden_size=arguments.hidden, intermediate_size=4 * arguments.hidden,
        num_hidden_layers=arguments.layers, num_attention_heads=4, num_key_value_heads=4, pad_token_id=0,
        bos_token_id=0, eos_token_id=0,
    )  # fmt: skip
    rows = [0.01 * torch.randn(arguments.hidden) for _ in range(arguments.layers)]
    return AutoModelForCausalLM.from_config(config, dtype=torch.float32), rows


def ours(arguments: argparse.Namespace, private: bool) -> Step:
    model, rows = anchor(arguments)
    pair(model, rows, rows, PairOptions())
    next_token, batch = NextToken(model.train()), inputs(arguments)
    trained = [parameter for _, parameter in trainable_parameters(model)]

    def step() -> None:
        for parameter in trained:
            parameter.grad = None
        if not private:
            next_token(batch)[0].backward()
            return
        spans = [(n * arguments.length, (n + 1) * arguments.length) for n in range(arguments.windows)]
        units = UnitGradients(spans)
        with units.recording(pairs(model)):
            next_token(batch)[0].backward()
        units.add_scaled(1 / (units.norms() + 0.01))

    return step


class PlainPair(nn.Module):
    """The pair as `nn.Linear` layers, which is what opacus can hook into."""

    def __init__(self, public: nn.Module) -> None:
        super().__init__()
        self.public, self.expert = public, copy.deepcopy(public)
        self.row = nn.Linear(public.gate_proj.in_features, 1, bias=False)
        self.public.requires_grad_(False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        share = torch.sigmoid(self.row(x))
        parts = [part.down_proj(silu(part.gate_proj(x)) * part.up_proj(x)) for part in (self.public, self.expert)]
        return torch.lerp(*parts, share)


def opacus(arguments: argparse.Namespace) -> Step:
    from opacus.grad_sample import GradSampleModuleFastGradientClipping

    model, _ = anchor(arguments)
    model.requires_grad_(False)
    for layer in model.model.layers:
        layer.mlp = PlainPair(layer.mlp)
        layer.mlp.expert.requires_grad_(True)
        layer.mlp.row.requires_grad_(True)
    wrapped: Any = GradSampleModuleFastGradientClipping(
        model.train(), max_grad_norm=1.0, use_ghost_clipping=True, strict=False, loss_reduction="mean"
    )
    batch = inputs(arguments)
    trained = [parameter for parameter in wrapped.parameters() if parameter.requires_grad]

    def step() -> None:
        for parameter in trained:
            parameter.grad = None
        wrapped.enable_hooks()
        logits = wrapped(input_ids=batch["input_ids"], position_ids=batch["position_ids"], use_cache=False).logits
        loss_N = nn.functional.cross_entropy(logits.flatten(0, 1), batch["labels"].flatten(), reduction="none")
        loss_B = loss_N.view(len(batch["labels"]), -1).mean(1)
        loss_B.mean().backward(retain_graph=True)  # norms
        factors_B = wrapped.get_clipping_coef()
        wrapped.disable_hooks()
        for parameter in trained:
            parameter.grad = None
        (factors_B * loss_B).sum().backward()

    return step


STEPS: dict[str, Callable[[argparse.Namespace], Step]] = {
    "plain": lambda arguments: ours(arguments, private=False),
    "private": lambda arguments: ours(arguments, private=True),
    "opacus": opacus,
}


def peak(name: str, arguments: argparse.Namespace, found: Any) -> None:
    step = STEPS[name](arguments)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for _ in range(2):
        step()
    found[name] = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024


def user_seconds(step: Step) -> float:
    before = time.process_time()
    step()
    return time.process_time() - before


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default in (("hidden", 256), ("layers", 4), ("vocabulary", 4096), ("windows", 16), ("length", 256)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--rounds", type=int, default=9)
    arguments = parser.parse_args()
    steps: dict[str, Step] = {}
    for name, make in STEPS.items():
        try:
            steps[name] = make(arguments)
        except ModuleNotFoundError as error:
            print(f"{name}: left out ({error})")
    context = multiprocessing.get_context("spawn")
    memory = context.Manager().dict()
    for name in steps:
        process = context.Process(target=peak, args=(name, arguments, memory))
        process.start()
        process.join()
    for step in steps.values():
        step()
    times: dict[str, list[float]] = {name: [] for name in steps}
    for n in range(arguments.rounds):
        order = list(steps)
        for name in [*order[n % len(order) :], *order[: n % len(order)]]:
            times[name].append(user_seconds(steps[name]))
    print("| step | seconds, median | over plain | peak memory, MB |\n|---|---|---|---|")
    for name, taken in times.items():
        ratio = median(a / b for a, b in zip(taken, times["plain"], strict=True))
        print(f"| {name} | {median(taken):.3f} | {ratio:.2f} | {memory.get(name, float('nan')):.0f} |")


if __name__ == "__main__":
    main()
