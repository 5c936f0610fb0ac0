"""All that we want to know of one GPU, in at most eight minutes: one JSON, and one page.

    python benchmarks/gpu.py --corpora data/corpora -o gpu.json         (then benchmarks/gpu.md is written from it)
    python benchmarks/gpu.py --toy --device cpu -o /tmp/toy.json        (that the script itself is right)
    python benchmarks/gpu.py --lacking                                  (the wheels that this machine lacks)

It runs from a checkout that is not installed, with PyTorch and transformers and what `--lacking` names. Parts come in
the order of their importance. Each is a process of its own, with a limit of its own within that of the whole; after
each figure the JSON is replaced, so what was measured is kept, whatever comes next.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from importlib.util import find_spec
from multiprocessing import get_context
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT)]  # before the rooms are imported, also where nothing is installed
os.environ.setdefault("PYTORCH_NVML_BASED_CUDA_CHECK", "1")  # asking for GPUs before a fork must not open the driver

from flexo.rooms import versions  # noqa: E402 - it can only be found once the path above is set

# package -> what is imported, the least version, MB of its wheel; what transformers itself asks for is there with it
WHEELS = {
    "torch": ("torch", "2.13", 900),
    "transformers": ("transformers", "5.23", 13),
    "lightning": ("lightning", "2.6.6", 1),
    "lightning-utilities": ("lightning_utilities", "0.15", 0.1),
    "torchmetrics": ("torchmetrics", "1.9", 1),
}


class Part(NamedTuple):
    """A part of the kit: what it calls, with which arguments, and the seconds that it may take."""

    name: str
    calls: str
    given: dict[str, Any]
    seconds: float


STEPS = {  # windows of 4,096 tokens, whether activations are computed twice, and the ways of training
    "1B": (4, False, ("ours", "published", "dense")),
    "7B": (1, True, ("adafactor", "ours", "published", "dense")),
}


def parts(toy: bool, corpora: Path | None) -> Iterator[Part]:
    """What is measured, in the order of its importance."""
    yield Part("machine", "speed.machine", {}, 60)
    yield Part("correctness", "checks", {}, 120)
    for size, (rows, recomputed, ways) in STEPS.items():
        given = {"size": "toy" if toy else size, "rows": 1 if toy else rows, "recomputed": recomputed}
        for way in ways:
            yield Part(f"step {size} {way}", "speed.expert_step", given | {"way": way}, 45)
    given = {"size": "toy", "experts": 3, "tokens": 4} if toy else {"size": "1B", "experts": 8, "tokens": 64}
    yield Part("generation", "speed.generation", given, 90)
    if corpora is not None:
        tokens = (512, 256) if toy else (40_000_000, 4_000_000)
        yield Part("study", "study", {"corpora": corpora, "tokens": tokens}, 180)
    yield Part("merging", "speed.merge", {"gigabytes": 0 if toy else 4}, 60)


def run_part(part: Part, device: str, toy: bool, kept: Path) -> None:
    """One part in this process; every figure goes to a file in `kept` at once, and what is printed to another."""
    figures: dict[str, Any] = {}
    for stream in (1, 2):
        os.dup2(os.open(kept / "log.txt", os.O_WRONLY | os.O_APPEND), stream)

    def note(**found: Any) -> None:
        figures.update(found)
        write(kept / "part.json", json.dumps(figures))

    if part.calls == "checks":
        from benchmarks.gpu_parts.checks import CHECKS, said

        for name, check in CHECKS.items():
            note(**{name: said(check, device)})
    elif part.calls == "study":
        from benchmarks.gpu_parts.study import study

        shutil.rmtree(kept / "study", ignore_errors=True)
        study(note, work=kept / "study", toy=toy, **part.given)
    elif part.calls == "speed.merge":
        from benchmarks.gpu_parts.speed import merge
        from benchmarks.merge_inputs import Sizes
        from benchmarks.merging import fitting

        memory = Path("/dev/shm")
        sizes = Sizes(128, 64, 2, 256, 3) if toy else fitting(part.given["gigabytes"], 4)
        merge(note, device, sizes, memory if memory.is_dir() else kept)
    else:
        from benchmarks.gpu_parts import speed

        getattr(speed, part.calls.partition(".")[2])(note, device, **part.given)


def lacking() -> list[str]:
    """What a machine lacks, or has in an older version than this was tested with, one line each."""
    said = []
    for package, (module, least, size) in WHEELS.items():
        found = versions([package])[package] if find_spec(module) else "lacking"
        older = found != "lacking" and _numbers(found) < _numbers(least)
        if found == "lacking" or older:
            said.append(f"{package}>={least}: {found}; its wheel has about {size} MB")
    return said


def _numbers(version: str) -> list[int]:
    return [int(part) for part in version.partition("+")[0].split(".") if part.isdecimal()]


def page(results: dict[str, Any]) -> str:
    """The results as Markdown."""
    lines = ["# On one GPU", "", f"    {results['command']}", "", f"Commit {results['commit']}. {results['said']}", ""]
    for name, part in results["parts"].items():
        lines += [f"## {name}", "", f"{part['ended']} after {part['seconds']:.0f} s.", "", "| | |", "|---|---|"]
        for what, value in part["figures"].items():
            shown = f"{value:,.4g}" if isinstance(value, float) and abs(value) < 1e4 else value
            lines.append(f"| {what} | {f'{shown:,.0f}' if isinstance(shown, float | int) else shown} |")
        lines += ["", f"```\n{part['log']}\n```", ""] if part["ended"] == "failed" else [""]
    return "\n".join(lines).rstrip() + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-o", "--output", type=Path, default=Path("gpu.json"))
    parser.add_argument("--page", type=Path, help="where the Markdown goes; none: beside the JSON")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--toy", action="store_true", help="tiny sizes, to see that everything runs")
    parser.add_argument(
        "--corpora", type=Path, help="folders public and three domains, with train and test, for the study"
    )
    parser.add_argument("--seconds", type=float, default=480, help="for all parts together")
    parser.add_argument("--parts", nargs="+", help="only parts whose names start so")
    parser.add_argument("--lacking", action="store_true", help="only say which wheels this machine lacks")
    options = parser.parse_args()
    print("\n".join(lacking()) or "no package is lacking", flush=True)
    if options.lacking:
        return
    chosen = list(parts(options.toy, options.corpora))
    kept = options.output.resolve().with_suffix(".parts")
    kept.mkdir(parents=True, exist_ok=True)
    head = subprocess.run(["git", "rev-parse", "--short", "HEAD"], cwd=ROOT, capture_output=True, text=True)
    results = {
        "command": " ".join(["python", "benchmarks/gpu.py", *sys.argv[1:]]),
        "commit": head.stdout.strip() or "?",
    }
    results |= {"said": f"Load {os.getloadavg()[0]:.0f}.", "parts": {}}
    end = time.monotonic() + options.seconds
    method = "fork"  # from here, where all is imported: half a minute less than importing it for each part
    import benchmarks.gpu_parts.checks
    import benchmarks.gpu_parts.speed  # noqa: F401 - not used here: the forks find it imported

    for part in chosen:
        if options.parts and not part.name.startswith(tuple(options.parts)):
            continue
        found = _apart(part, options, end - time.monotonic(), kept, method)
        if found["ended"] == "failed" and not results["parts"] and method == "fork":
            method = "spawn"
            found = _apart(part, options, end - time.monotonic(), kept, method)
        results["parts"][part.name] = found
        write(options.output, json.dumps(results, indent=1))
        write(options.page or options.output.with_suffix(".md"), page(results))


def write(path: Path, text: str) -> None:
    from flexo.atomic_files import new_file

    with new_file(path, replace=True) as partial:
        partial.write_text(text)


def _apart(part: Part, options: argparse.Namespace, left: float, kept: Path, method: str) -> dict[str, Any]:
    """A part in a process of its own, cut off at its limit: its figures as far as it came, and how it ended."""
    began, noted = time.monotonic(), kept / "part.json"
    noted.unlink(missing_ok=True)
    ended, log = "no time was left", kept / "log.txt"
    log.write_text("")
    if left > 5:
        context: Any = get_context(method)
        process = context.Process(target=run_part, args=(part, options.device, options.toy, kept))
        process.start()
        process.join(min(1800 if options.toy else part.seconds, left))
        ended = "cut off" if process.is_alive() else "failed" if process.exitcode else "done"
        process.kill()
        process.join()
    figures = json.loads(noted.read_text()) if noted.exists() else {}
    found = {"ended": ended, "seconds": time.monotonic() - began, "figures": figures, "log": log.read_text()[-1500:]}
    print(f"{part.name}: {ended}, {figures}" + (f"\n{found['log']}" if ended == "failed" else ""), flush=True)
    return found


if __name__ == "__main__":
    main()
