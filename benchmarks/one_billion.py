"""Everything one does with an anchor, at the true configuration of OLMo-2 1B, on a CPU: time and memory of each part.

    OMP_NUM_THREADS=1 python -m benchmarks.one_billion --work /tmp/1b --memory 14GB      (an hour; 25 GB of disk)
    python -m benchmarks.one_billion --work /tmp/tiny --size 64 128 2 2 512 --memory 2GB

Weights are random, and so is the text: what is measured is whether it runs, how long it takes and what it needs. Each
part is a command in a process of its own. What has been measured stands in WORK/results.json and is not run again, so
the same command goes on where it was stopped. A part that is planned to need more than `--memory`, or more than is
free, is left out and said so.

private   the peak of memory that is the process's own (RssAnon); pages of mapped files can be dropped, and are shared
floor     the FLOPs of a training step at the speed of a plain matrix product, or the bytes a part must read and write
          at the speed of a plain copy, both measured here and in processor time
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from benchmarks.merging import GB, ROOT, flexo, setting
from flexo.atomic_files import new_file
from merge.commands.options import parse_size
from merge.formats.architecture import Architecture
from trainers.expert.cost_plan import Load, plan_cost

OLMO_1B = (2048, 8192, 16, 16, 100_352)  # D, F, L, heads, V
WORDS = ["public", *(f"word{n}" for n in range(400))]
LENGTH, STEPS = 32, 10
KINDS: dict[
    str, tuple[list[str], dict[str, Any]]
] = {  # of training -> settings, and what of the plan's load they change
    "adamw": (["optimizer.kind=adamw"], {}),
    "adafactor": (["optimizer.kind=adafactor"], {"kind": "adafactor"}),
    "rank64": (["optimizer.kind=adamw", "model.rank=64"], {"rank": 64}),
    "upper": (["model.first_layer={half}", "optimizer.kind=adafactor"], {"first_layer": "half", "kind": "adafactor"}),
}


@dataclass(frozen=True)
class Part:
    """A command to measure, what it is planned to need in memory of its own, and what it cannot do without."""

    name: str
    command: list[Any]
    planned: float = 0.0  # bytes
    flops: float = 0.0
    moved: float = 0.0  # bytes read and written
    stop_at: Path | None = None  # sent SIGTERM once this file is there


def make_model(folder: Path, size: tuple[int, ...]) -> None:
    """An OLMo-2 of random weights in bfloat16, with a small tokenizer, as it would come from the hub."""
    import torch
    from transformers import AutoModelForCausalLM, Olmo2Config, PreTrainedTokenizerFast

    from flexmix.tokens.train_tokenizer import END_OF_TEXT, PAD, train_tokenizer

    hidden, ffn, layers, heads, vocabulary = size
    torch.manual_seed(0)
    config = Olmo2Config(
        vocab_size=vocabulary, hidden_size=hidden, intermediate_size=ffn, num_hidden_layers=layers,
        num_attention_heads=heads, num_key_value_heads=heads, max_position_embeddings=4096,
        rope_parameters={"rope_type": "default", "rope_theta": 500_000.0}, rms_norm_eps=1e-6, tie_word_embeddings=False,
        bos_token_id=None, eos_token_id=0, pad_token_id=1,
    )  # fmt: skip
    AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16).save_pretrained(folder)
    fast: Any = PreTrainedTokenizerFast
    tokenizer = train_tokenizer([" ".join(WORDS)] * 4, 500)
    fast(tokenizer_object=tokenizer, eos_token=END_OF_TEXT, pad_token=PAD).save_pretrained(folder)


def write_texts(folder: Path) -> None:
    """Random words: public ones, and own ones for each way of training."""
    for name in ("public", *KINDS):
        (folder / name).mkdir(parents=True)
        for split, documents in (("train", 400), ("test", 40)):
            dice = random.Random(f"{name} {split}")
            words = dice.sample(WORDS, 60)
            lines = (json.dumps({"text": " ".join(dice.choices(words, k=100))}) for _ in range(documents))
            (folder / name / f"{split}.jsonl").write_text("\n".join(lines) + "\n")


def parts(work: Path, size: tuple[int, ...]) -> Iterator[Part]:
    """All parts in their order; the sizes that they are judged by follow from the anchor's."""
    hidden, ffn, layers, heads, vocabulary = size
    arch = Architecture(vocabulary, hidden, ffn, layers, heads, heads, False, 1e-6, 500_000.0)
    load = Load(tokens=STEPS * LENGTH, length=LENGTH, rows=1, device="cpu")
    weights = 2 * plan_cost(arch, load).frozen
    expert = 2 * layers * (3 * hidden * ffn + hidden)
    anchor, model, moments = work / "anchor", work / "model", 8 * layers * hidden**2
    shared = ["data.batch_size=1", "logger=none", f"data.cache={work}/tokens"]
    yield Part(
        "adopt",
        [sys.executable, "train_anchor.py", f"anchor.path={work}/base", f"data.path={work}/text/public", *shared,
         "data.length=64", "data.moment_windows=16", f"output={anchor}"],
        2 * moments, moved=2 * weights + moments / 8,
    )  # fmt: skip
    for name, (settings, changes) in KINDS.items():
        changed = {key: layers // 2 if value == "half" else value for key, value in changes.items()}
        plan = plan_cost(arch, replace(load, **changed))
        command = [
            sys.executable, "train_expert.py", "+domain=local", f"domain.name={name}", f"anchor.path={anchor}",
            f"domain.train={work}/text/{name}/train.jsonl", f"domain.test={work}/text/{name}/test.jsonl",
            *(part.format(half=layers // 2) for part in settings), *shared, f"data.length={LENGTH}",
            f"data.tokens={load.tokens}", "data.eval_windows=1", "data.moment_windows=4", "run.precision=bf16-mixed",
            "run.checkpoint_seconds=100000", f"output={work}/{name}.pt",
        ]  # fmt: skip
        if name == "adamw":
            yield Part("plan", [*command, "plan=true"])
        moved = 2 * weights + 8 * plan.trained  # the anchor read and hashed, the last checkpoint, the file
        yield Part(name, command, plan.memory, plan.flops_per_token * load.tokens, moved + expert)
        if name == "rank64":
            again = [*command[:-1], "run.checkpoint_seconds=1", f"output={work}/again.pt"]
            yield Part("rank64, stopped", again, plan.memory, stop_at=work / "again.run" / "last.ckpt")
            yield Part("rank64, resumed", again, plan.memory)
    experts = [work / f"{name}.pt" for name in KINDS if (work / f"{name}.pt").exists()]
    whole = weights + len(experts) * expert
    held = (len(experts) + 1) * expert + 5e8  # transformers copies the experts, the public one too; and libraries
    widened = 2 * (len(experts) + 1) * expert / layers + 4 * vocabulary * hidden  # a layer and the head in float32
    merge: list[Any] = ["merge.commands.flexo_merge:main", *experts, "-o", model, "--anchor", anchor, "--no-check"]
    yield Part(f"merge of {len(experts)}", flexo(*merge), 1e8, moved=2 * whole)
    yield Part(
        "check", flexo("inference.commands.flexo_check:main", model, "--anchor", anchor), held + widened, moved=whole
    )
    generate: list[Any] = ["inference.commands.flexo_generate:main", model, "word1 word2", "--max-new-tokens", 16]
    yield Part("generate", flexo(*generate), held, moved=whole)
    yield Part("generate, two selected", flexo(*generate, "--experts", "public,rank64"), held, moved=weights + expert)
    yield Part("generate, public alone", flexo(*generate, "--experts", "public"), held, moved=weights)
    yield Part("generate, attributed", flexo(*generate, "--attribution"), held, moved=whole)
    packed = work / "int4"
    quantize: list[Any] = ["merge.commands.flexo_quantize:main", model, "-o", packed, "--bits", 4]
    yield Part("int4", flexo(*quantize), 2e8, moved=1.25 * whole)
    generate[1] = packed
    yield Part("int4, generate", flexo(*generate), whole / 3, moved=whole / 3)
    leave: list[Any] = ["merge.commands.flexo_optout:main", model, "-o", work / "left", "--drop", "rank64"]
    yield Part("leave", flexo(*leave), 1e8, moved=2 * (whole - expert))


def measured(part: Part, log: Path, limit: float) -> dict[str, Any]:
    """Runs a part; seconds by the clock and of processors, peaks in bytes, and how it ended."""
    began, peaks, stopped = time.perf_counter(), {"RssAnon": 0, "VmHWM": 0}, False
    with log.open("wb") as file:
        process = subprocess.Popen([str(word) for word in part.command], cwd=ROOT, stdout=file, stderr=file)
        while os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None:
            for line in Path(f"/proc/{process.pid}/status").read_text().splitlines():
                if (name := line.partition(":")[0]) in peaks:
                    peaks[name] = max(peaks[name], 1024 * int(line.split()[1]))
            late = time.perf_counter() - began > limit
            if late or (part.stop_at and part.stop_at.exists() and not stopped):
                process.send_signal(signal.SIGKILL if late else signal.SIGTERM)
                stopped = True
            time.sleep(0.2)
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
    ended = "cut off" if process.returncode == -signal.SIGKILL else process.returncode
    return {
        "wall": time.perf_counter() - began, "cpu": usage.ru_utime + usage.ru_stime, "private": peaks["RssAnon"],
        "resident": peaks["VmHWM"], "ended": ended, "says": log.read_text(errors="replace")[-4000:],
    }  # fmt: skip


def ceilings(size: tuple[int, ...]) -> dict[str, float]:
    """FLOP/s of a bf16 product of a step's shape, and bytes per second of a copy, both by processor time."""
    import torch

    x, w = torch.randn(LENGTH, size[0]).bfloat16(), torch.randn(size[1], size[0]).bfloat16()
    source, target = torch.ones(1 << 28, dtype=torch.uint8), torch.empty(1 << 28, dtype=torch.uint8)

    def rate(work: Callable[[], Any], amount: float) -> float:
        times = []
        for _ in range(5):
            began = time.process_time()
            work()
            times.append(time.process_time() - began)
        return amount / max(min(times), 1e-6)

    flops = rate(lambda: [x @ w.T for _ in range(20)], 20 * 2 * LENGTH * size[0] * size[1])
    return {"flops": flops, "bytes": rate(lambda: target.copy_(source), 2 * len(source))}


def available() -> float:
    (line,) = [line for line in Path("/proc/meminfo").read_text().splitlines() if line.startswith("MemAvailable")]
    return 1024 * int(line.split()[1])


def table(results: dict[str, Any]) -> str:
    """The results in Markdown."""
    ceiling = results["ceilings"]
    lines = ["| part | s | CPU s | floor, CPU s | private, GB | planned | with mapped | ended |", f"|{'---|' * 8}"]
    for name, found in results["parts"].items():
        if "wall" not in found:
            lines.append(f"| {name} | | | | | {found['planned'] / GB:.2f} | | {found['ended']} |")
            continue
        floor = found["flops"] / ceiling["flops"] + found["moved"] / ceiling["bytes"]
        memory = " | ".join(f"{found[what] / GB:.2f}" for what in ("private", "planned", "resident"))
        times = f"{found['wall']:.0f} | {found['cpu']:.1f} | {floor:.1f}"
        lines.append(f"| {name} | {times} | {memory} | {found['ended']} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True, help="a folder for everything; delete it afterwards")
    parser.add_argument("--size", type=int, nargs=5, metavar=("D", "F", "L", "H", "V"), default=OLMO_1B)
    parser.add_argument("--memory", type=parse_size, default=parse_size("14GB"), help="that a part may need")
    parser.add_argument("--limit", type=float, default=600, help="seconds after which a part is cut off")
    parser.add_argument("--parts", nargs="+", help="only these")
    options = parser.parse_args()
    work, size = options.work.resolve(), tuple(options.size)
    work.mkdir(parents=True, exist_ok=True)
    kept = work / "results.json"
    results: dict[str, Any] = {"ceilings": {}, "parts": {}}
    results = json.loads(kept.read_text()) if kept.exists() else results | {"ceilings": ceilings(size)}
    results["setting"] = setting()
    if not (work / "base").exists():
        write_texts(work / "text")
        make_model(work / "base.partial", size)
        (work / "base.partial").rename(work / "base")
    for part in parts(work, size):
        found = results["parts"].get(part.name, {})
        if found.get("ended") == 0 or (options.parts and part.name not in options.parts):
            continue
        result = {name: value for name, value in asdict(part).items() if name in ("planned", "flops", "moved")}
        if part.planned > (room := min(options.memory, available() - GB)):
            result["ended"] = f"left out: {room / GB:.1f} GB were to be had"
        else:
            shutil.rmtree(work / part.name, ignore_errors=True)
            if part.stop_at is not None:  # what a stop of before has left would stop it at once
                shutil.rmtree(part.stop_at.parent, ignore_errors=True)
            result |= measured(part, work / "log.txt", options.limit)
        results["parts"][part.name] = result
        print(f"{part.name}: { ({name: value for name, value in result.items() if name != 'says'}) }", flush=True)
        with new_file(kept, replace=True) as partial:
            partial.write_text(json.dumps(results, indent=1))
    print(f"{results['setting']}\n\n{table(results)}")


if __name__ == "__main__":
    main()
