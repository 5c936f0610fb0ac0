"""How long threads should wait for each other in loops: training steps on an idle machine and beside a busy core.

    python benchmarks/busy_machine.py                                  # every setting, two rounds (12 minutes)
    python benchmarks/busy_machine.py --settings "as it is" "a command's" --rounds 4
    LD_PRELOAD=.../libiomp5.so python benchmarks/busy_machine.py --settings "as it is" KMP_BLOCKTIME=0 KMP_BLOCKTIME=1

Each measurement is a process of its own, for OpenMP reads its settings once, as it is loaded. Settings take turns, idle
and busy, round after round. Busy is one endless loop, pinned to the last core. A ratio is that of tokens per second to
the first setting of the same round, the median over the rounds; the load of other work is printed before and after.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from statistics import median
from typing import Any

SETTINGS: dict[str, dict[str, str]] = {
    "as it is": {},
    "GOMP_SPINCOUNT=100": {"GOMP_SPINCOUNT": "100"},
    "GOMP_SPINCOUNT=1000": {"GOMP_SPINCOUNT": "1000"},
    "GOMP_SPINCOUNT=2000": {"GOMP_SPINCOUNT": "2000"},
    "GOMP_SPINCOUNT=5000": {"GOMP_SPINCOUNT": "5000"},
    "GOMP_SPINCOUNT=20000": {"GOMP_SPINCOUNT": "20000"},
    "OMP_WAIT_POLICY=PASSIVE": {"OMP_WAIT_POLICY": "PASSIVE"},
    "one thread": {"OMP_NUM_THREADS": "1"},
    "KMP_BLOCKTIME=0": {"KMP_BLOCKTIME": "0"},
    "KMP_BLOCKTIME=1": {"KMP_BLOCKTIME": "1"},
    "a command's": {"FLEXO_SHARE": "1"},  # what `flexo/cpu_threads.py` decides as PyTorch is loaded
}
SHAPES = {  # of the tiny anchor, and of its expert with four context heads: width, layers, windows of 256 tokens
    "anchor": (128, 4, 8),
    "expert": (256, 5, 2),
}
VOCABULARY, LENGTH, WARM_UP = 4096, 256, 5


def steps(name: str) -> Callable[[], object]:
    """A function that does one step."""
    if "FLEXO_SHARE" in os.environ:
        from flexo.cpu_threads import choose_how_to_wait

        choose_how_to_wait()
    import torch
    from transformers import AutoModelForCausalLM, Olmo2Config

    from flexo.cpu_threads import keep_freed_memory
    from trainers.expert.paired import pair, trainable_parameters
    from trainers.loop.next_token_loss import NextToken
    from trainers.loop.optimizer import OptimizerOptions

    keep_freed_memory()
    torch.manual_seed(0)
    width, layers, rows = SHAPES[name]
    config = Olmo2Config(
        hidden_size=width, intermediate_size=512, num_hidden_layers=layers, vocab_size=VOCABULARY,
        num_attention_heads=width // 32, num_key_value_heads=width // 32, max_position_embeddings=1024,
        pad_token_id=0, bos_token_id=0, eos_token_id=0,
    )  # fmt: skip
    model: Any = AutoModelForCausalLM.from_config(config)
    trained = list(model.named_parameters())
    if name == "expert":
        router = [torch.randn(width) * 0.01 for _ in model.model.layers]
        pair(model, router, router)
        trained = list(trainable_parameters(model))
    next_token, optimizer = NextToken(model.train(), 1e-5), OptimizerOptions(lr=1e-4).build(trained)
    x_BT = torch.randint(VOCABULARY, (rows, LENGTH + 1))
    position_BT = torch.arange(LENGTH).expand(rows, LENGTH)
    inputs = {"input_ids": x_BT[:, :-1].contiguous(), "labels": x_BT[:, 1:].contiguous(), "position_ids": position_BT}

    def step() -> None:
        loss, _ = next_token(inputs)
        loss.backward()
        torch.nn.utils.clip_grad_norm_([parameter for _, parameter in trained], 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return step


def measure_here(name: str, seconds: float) -> float:
    """Tokens per second of this process."""
    step = steps(name)
    for _ in range(WARM_UP):
        step()
    began, count = time.perf_counter(), 0
    while (took := time.perf_counter() - began) < seconds:
        step()
        count += 1
    return count * SHAPES[name][2] * LENGTH / took


def measure(name: str, setting: dict[str, str], seconds: float) -> float:
    """Tokens per second of a new process with a setting."""
    environment = {key: value for key, value in os.environ.items() if not key.startswith(("OMP_", "GOMP_", "KMP_"))}
    command = [sys.executable, __file__, "--here", name, "--seconds", str(seconds)]
    done = subprocess.run(command, env=environment | setting, capture_output=True, text=True, check=True)
    return float(done.stdout)


@contextmanager
def busy_core() -> Iterator[None]:
    """One endless loop on the last core."""
    with subprocess.Popen([sys.executable, "-c", "while True: pass"]) as loop:
        os.sched_setaffinity(loop.pid, {max(os.sched_getaffinity(0))})
        try:
            yield
        finally:
            loop.kill()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--settings", nargs="+", choices=SETTINGS, default=list(SETTINGS))
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--seconds", type=float, default=6.0, help="of each measurement")
    parser.add_argument("--here", choices=SHAPES, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.here:
        print(measure_here(arguments.here, arguments.seconds))
        return
    print(f"{len(os.sched_getaffinity(0))} cores, load before {os.getloadavg()[0]:.2f}", flush=True)
    rates: dict[tuple[str, str, str], list[float]] = {}
    for _ in range(arguments.rounds):
        for name in SHAPES:
            for label in arguments.settings:
                idle = measure(name, SETTINGS[label], arguments.seconds)
                with busy_core():
                    busy = measure(name, SETTINGS[label], arguments.seconds)
                rates.setdefault((name, "idle", label), []).append(idle)
                rates.setdefault((name, "busy", label), []).append(busy)
                print(f"{name}, {label}: {idle:,.0f}, {busy:,.0f}", file=sys.stderr, flush=True)
    print(f"load after {os.getloadavg()[0]:.2f}, of which up to 2 are this")
    columns = [(name, state) for name in SHAPES for state in ("idle", "busy")]
    print(f"| | {' | '.join(f'{name}, {state}' for name, state in columns)} |\n|---|{'---|' * len(columns)}")
    first = arguments.settings[0]
    for label in arguments.settings:
        cells = []
        for column in columns:
            of_first, found = rates[*column, first], rates[*column, label]
            ratio = median(one / other for one, other in zip(found, of_first, strict=True))
            cells.append(f"{median(found):,.0f} ({ratio:.2f})")
        print(f"| {label} | {' | '.join(cells)} |")


if __name__ == "__main__":
    main()
