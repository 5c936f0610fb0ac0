"""Training one expert: ours against the published way in transformers, step by step in one process.

    python benchmarks/training.py                                   # D 256, 512, 1024; V 16k, 50k; fp32 and bf16
    python benchmarks/training.py --hidden 512 --vocabulary 16384 --dtype bf16 --steps 10

peer      `FlexOlmoForCausalLM` with two experts, top-2: gradients for both experts and both router rows, the public
          half masked after backward, AdamW over all of it, transformers' own loss
ours      the paired layer of `trainers.expert.paired` with the loss of `trainers.loop.next_token_loss`, AdamW over the
          expert and its row
ceiling   the matrix products that our step cannot do without, at the same shapes and dtype, and nothing else

They take turns, step after step, each of them first in its turn, so that a busy moment of the machine hits all. A
ratio is the median over the rounds; "by CPU" is that of user time, in which other work on the machine does not count.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import torch
from transformers import AutoModelForCausalLM, FlexOlmoConfig, FlexOlmoForCausalLM, Olmo2Config

from flexo.cpu_threads import keep_freed_memory
from merge.formats.architecture import Architecture
from trainers.expert.cost_plan import Load, plan_cost
from trainers.expert.paired import pair, trainable_parameters
from trainers.loop.next_token_loss import NextToken
from trainers.loop.optimizer import Kind, OptimizerOptions
from trainers.loop.trainer import recompute_activations

Times = tuple[float, float]  # seconds by the clock, and of the CPUs in user mode
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


def shape(hidden: int, vocabulary: int, layers: int) -> dict[str, Any]:
    return {
        "hidden_size": hidden, "intermediate_size": 4 * hidden, "num_hidden_layers": layers, "vocab_size": vocabulary,
        "num_attention_heads": hidden // 64, "num_key_value_heads": hidden // 64, "max_position_embeddings": 1024,
        "pad_token_id": 0, "bos_token_id": 0, "eos_token_id": 0,
    }  # fmt: skip


def batch(vocabulary: int, rows: int, length: int, device: str) -> dict[str, torch.Tensor]:
    x_BT = torch.randint(vocabulary, (rows, length + 1), generator=torch.Generator().manual_seed(0)).to(device)
    position_BT = torch.arange(length, device=device).expand(rows, length)
    return {"input_ids": x_BT[:, :-1].contiguous(), "labels": x_BT[:, 1:].contiguous(), "position_ids": position_BT}


def ours(
    config: dict[str, Any],
    dtype: torch.dtype,
    device: str,
    compiled: bool = False,
    recomputed: bool = False,
    kind: Kind = "adamw",
) -> Callable[[dict[str, Any]], float]:
    with torch.device(device):
        model: Any = AutoModelForCausalLM.from_config(Olmo2Config(**config), dtype=dtype)
    rows = [torch.randn(config["hidden_size"]) * 0.01 for _ in model.model.layers]
    pair(model, rows, rows)
    model.to(device)
    if recomputed:
        recompute_activations(model)
    if compiled:
        for layer in model.model.layers:
            layer.compile()
    next_token = NextToken(model.train(), 1e-5)
    return stepping(next_token, OptimizerOptions(lr=1e-4, kind=kind).build(trainable_parameters(model)), dtype, device)


def dense(
    config: dict[str, Any], dtype: torch.dtype, device: str, recomputed: bool = False
) -> Callable[[dict[str, Any]], float]:
    """All weights of the anchor trained, in float32, with the same loss."""
    with torch.device(device):
        model: Any = AutoModelForCausalLM.from_config(Olmo2Config(**config), dtype=torch.float32)
    if recomputed:
        recompute_activations(model)
    next_token = NextToken(model.train(), 1e-5)
    return stepping(next_token, OptimizerOptions(lr=1e-4).build(model.named_parameters()), dtype, device)


def stepping(
    next_token: NextToken, optimizer: torch.optim.Optimizer, dtype: torch.dtype, device: str
) -> Callable[[dict[str, Any]], float]:
    def step(inputs: dict[str, Any]) -> float:
        with autocast(device, dtype):
            loss, _ = next_token(inputs)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return float(loss.detach())

    return step


def peer(
    config: dict[str, Any], dtype: torch.dtype, device: str, recomputed: bool = False
) -> Callable[[dict[str, Any]], float]:
    with torch.device(device):
        settings = FlexOlmoConfig(**config, num_experts=2, num_experts_per_tok=2, output_router_logits=False)
        model: Any = FlexOlmoForCausalLM(settings)
    if recomputed:
        model.gradient_checkpointing_enable({"use_reentrant": False})
    model.requires_grad_(False)
    trained = [layer.mlp for layer in model.model.layers]
    for block in trained:
        block.requires_grad_(True)
    optimizer = torch.optim.AdamW([p for block in trained for p in block.parameters()], lr=1e-4, fused=True)

    def step(inputs: dict[str, Any]) -> float:
        with autocast(device, dtype):
            output = model(
                input_ids=inputs["input_ids"], position_ids=inputs["position_ids"], shift_labels=inputs["labels"],
                labels=inputs["labels"], use_cache=False,
            )  # fmt: skip
        output.loss.backward()
        for block in trained:
            for parameter in block.parameters():
                parameter.grad[0].zero_()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return float(output.loss.detach())

    return step


def ceiling(config: dict[str, Any], tokens: int, dtype: torch.dtype, device: str) -> Callable[[], None]:
    """The products of one step: forward, gradients of inputs everywhere, gradients of weights for the expert alone."""
    d, f, v, layers = (config[name] for name in ("hidden_size", "intermediate_size", "vocab_size", "num_hidden_layers"))
    x_ND, x_NF, w_FD = (torch.randn(*size, device=device).to(dtype) for size in ((tokens, d), (tokens, f), (f, d)))
    w_DD, w_VD = torch.randn(d, d, device=device).to(dtype), torch.randn(v, d, device=device).to(dtype)
    rows = 512
    grad_nV = torch.randn(rows, v, device=device).to(dtype)

    def products() -> None:
        for _ in range(layers):
            for _ in range(4 * 2):  # attention's four projections: forward, gradient of input
                x_ND @ w_DD.T
            for _ in range(2 * 2):  # gate and up of two experts
                x_ND @ w_FD.T
                x_NF @ w_FD
            for _ in range(2):  # down of two experts
                x_NF @ w_FD
                x_ND @ w_FD.T
            for _ in range(3):  # gradients of the expert's weights
                x_NF.T @ x_ND
        for first in range(0, tokens, rows):
            x_ND[first : first + rows] @ w_VD.T
            grad_nV[: min(rows, tokens - first)] @ w_VD

    return products


def autocast(device: str, dtype: torch.dtype) -> Any:
    return torch.autocast(device, torch.bfloat16) if dtype == torch.bfloat16 else nullcontext()


def timed(work: Callable[[], Any], device: str) -> Times:
    if device == "cuda":
        torch.cuda.synchronize()
    wall, user = time.perf_counter(), os.times().user
    work()
    if device == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - wall, os.times().user - user


def speed(args: argparse.Namespace, hidden: int, vocabulary: int, name: str) -> dict[str, Any]:
    config, dtype, device = shape(hidden, vocabulary, args.layers), DTYPES[name], args.device
    inputs = batch(vocabulary, args.rows, args.length, device)
    tokens = args.rows * args.length
    torch.manual_seed(0)
    runs: dict[str, Callable[[], Any]] = {}
    our_step, their_step = ours(config, dtype, device, args.compile), peer(config, dtype, device)
    runs["ours"], runs["peer"] = (lambda: our_step(inputs)), (lambda: their_step(inputs))
    runs["ceiling"] = ceiling(config, tokens, dtype, device)
    for work in runs.values():
        work()  # the first step allocates
    rounds: list[dict[str, Times]] = []
    for n in range(args.steps):
        order = list(runs)[n % len(runs) :] + list(runs)[: n % len(runs)]
        rounds.append({which: timed(runs[which], device) for which in order})

    def ratio(over: str, under: str, clock: int = 0) -> float:
        return median(round[over][clock] / round[under][clock] for round in rounds)

    return {
        "hidden": hidden, "vocabulary": vocabulary, "dtype": name, "speedup": ratio("peer", "ours"),
        "of_ceiling": ratio("ceiling", "ours"), "peer_of_ceiling": ratio("ceiling", "peer"),
        "speedup_cpu": ratio("peer", "ours", 1), "of_ceiling_cpu": ratio("ceiling", "ours", 1),
        "tokens_per_second": tokens / median(round["ours"][0] for round in rounds), "rounds": rounds,
    }  # fmt: skip


def peak(args: argparse.Namespace) -> None:
    """Prints this process's peak memory over what it had before the model was made; run once for each way."""
    config, dtype = shape(args.hidden[0], args.vocabulary[0], args.layers), DTYPES[args.dtype[0]]
    make = peer if args.peak == "peer" else partial(ours, compiled=args.compile)
    make(shape(64, 64, 2), dtype, args.device)(batch(64, 1, 16, args.device))  # brings the libraries' kernels in
    inputs = batch(args.vocabulary[0], args.rows, args.length, args.device)
    before = highest_rss()
    if args.device == "cuda":
        torch.cuda.reset_peak_memory_stats()
    step = make(config, dtype, args.device)
    for _ in range(3):
        step(inputs)
    print(torch.cuda.max_memory_allocated() if args.device == "cuda" else highest_rss() - before)


def highest_rss() -> int:
    """Bytes, of this process alone; `ru_maxrss` would start from the parent's."""
    (line,) = [line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM")]
    return int(line.split()[1]) * 1024


def planned(args: argparse.Namespace, hidden: int, vocabulary: int, name: str) -> int:
    """What `trainers.expert.cost_plan` says that our way needs."""
    heads = hidden // 64
    arch = Architecture(vocabulary, hidden, 4 * hidden, args.layers, heads, heads, False, 1e-6, 1e4)
    load = Load(tokens=1, length=args.length, rows=args.rows, bf16=name == "bf16", device=args.device)
    return plan_cost(arch, load).memory


def measured_peak(args: argparse.Namespace, hidden: int, vocabulary: int, name: str, which: str) -> int:
    command = [sys.executable, __file__, "--peak", which, "--hidden", str(hidden), "--vocabulary", str(vocabulary)]
    command += ["--dtype", name, "--device", args.device, "--rows", str(args.rows), "--length", str(args.length)]
    command += ["--layers", str(args.layers), *(["--compile"] if args.compile else [])]
    # with it, freed blocks go back at once, and the peak is what was in use rather than what glibc kept
    settings = os.environ | {"MALLOC_MMAP_THRESHOLD_": str(1 << 16)}
    return int(subprocess.run(command, check=True, capture_output=True, text=True, env=settings).stdout)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--hidden", type=int, nargs="+", default=[256, 512, 1024])
    parser.add_argument("--vocabulary", type=int, nargs="+", default=[16384, 50304])
    parser.add_argument("--dtype", nargs="+", choices=DTYPES, default=list(DTYPES))
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--rows", type=int, default=4)
    parser.add_argument("--length", type=int, default=256)
    parser.add_argument("--steps", type=int, default=7)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--compile", action="store_true", help="compile our decoder layers")
    parser.add_argument("--peak", choices=("ours", "peer"), help="only measure this one's peak memory")
    parser.add_argument("--json")
    args = parser.parse_args()
    if args.peak:
        peak(args)
        return
    keep_freed_memory()
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads, {platform.processor() or platform.machine()}")
    print("| D | V | dtype | speed over peer | by CPU | of the ceiling | by CPU | peer, of it | memory | plan of it |")
    print(f"|{'---|' * 10}")
    results = []
    for hidden in args.hidden:
        for vocabulary in args.vocabulary:
            for name in args.dtype:
                row = speed(args, hidden, vocabulary, name)
                peaks = [measured_peak(args, hidden, vocabulary, name, which) for which in ("ours", "peer")]
                row |= {"memory": peaks[0] / peaks[1], "peak_bytes": peaks[0]}
                row["plan"] = planned(args, hidden, vocabulary, name) / peaks[0]
                results.append(row)
                names = ("speedup", "speedup_cpu", "of_ceiling", "of_ceiling_cpu", "peer_of_ceiling", "memory", "plan")
                figures = " | ".join(f"{row[figure]:.2f}" for figure in names)
                print(f"| {hidden} | {vocabulary} | {name} | {figures} |", flush=True)
    if args.json:
        Path(args.json).write_text(json.dumps(results, indent=1))


if __name__ == "__main__":
    main()
