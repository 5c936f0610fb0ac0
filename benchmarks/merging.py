"""How fast `flexo-merge` is beside `cp` and sha256 of the same bytes, what memory it takes, and when it starts.

    python -m benchmarks.merging speed --work /dev/shm --gigabytes 1        (in memory: no disk)
    python -m benchmarks.merging speed --work /tmp --gigabytes 8 --cold     (from disk to disk)
    python -m benchmarks.merging speed --work /tmp --sizes 4096 11008 32 100352 3 --sparse --rounds 1
    python -m benchmarks.merging memory --work /tmp --gigabytes 1 20 --experts 2 64 --sparse
    python -m benchmarks.merging commands --work /tmp --gigabytes 4

Everything is written under `--work` and deleted again. Speeds are ratios taken side by side: the ways alternate, and
the median of the rounds' ratios counts. A merge is the whole command, start-up, planning and fsync of its output
included, so `cp` is followed by an fsync of what it wrote. sha256 is one thread of hashlib over the files.
"""

from __future__ import annotations

import argparse
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
import tomllib
from collections.abc import Callable, Iterable
from dataclasses import astuple, dataclass
from pathlib import Path
from typing import Any

from benchmarks.merge_inputs import Sizes

GB = 1_000_000_000
ROOT = Path(__file__).resolve().parents[1]
INPUTS = """
import sys
from pathlib import Path
from typing import Any
from benchmarks.merge_inputs import Sizes, write_inputs
write_inputs(Path(sys.argv[1]), Sizes(*map(int, sys.argv[3:])), sparse=sys.argv[2] == "1")
"""
HASH = """
import hashlib, sys
for path in sys.argv[1:]:
    digest, buffer = hashlib.sha256(), memoryview(bytearray(1 << 22))
    with open(path, "rb", buffering=0) as file:
        while count := file.readinto(buffer):
            digest.update(buffer[:count])
"""


@dataclass(frozen=True)
class Run:
    """What a process took: seconds by the clock, seconds of processors, MB at its peak, seconds to its first output."""

    wall: float
    cpu: float
    peak: float
    started: float | None


def measured(command: Iterable[object], watch: Path | None = None) -> Run:
    """Runs a command to its end; `watch` is the folder in which a hidden neighbour with a shard appears."""
    begin, started = time.perf_counter(), None
    with tempfile.TemporaryFile() as log:
        process = subprocess.Popen([str(part) for part in command], cwd=ROOT, stdout=log, stderr=log)
        while watch and started is None and not _ended(process.pid):
            if any(path.stat().st_size for path in watch.glob(".*/*.safetensors")):
                started = time.perf_counter() - begin
            time.sleep(0.002)
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        wall = time.perf_counter() - begin
        log.seek(0)
        assert process.returncode == 0, log.read().decode()
    return Run(wall, usage.ru_utime + usage.ru_stime, usage.ru_maxrss * 1024 / 1e6, started)


def _ended(pid: int) -> bool:
    return os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None


def flexo(entry: str, *arguments: Any) -> list[object]:
    """A command of ours as a process, also where it is not installed."""
    module, _, function = entry.partition(":")
    code = f"import sys; sys.argv[0] = 'flexo'; from {module} import {function} as main; main()"
    return [sys.executable, "-c", code, *arguments]


def merge(folder: Path, *options: object) -> list[object]:
    experts = sorted(folder.glob("*.safetensors"), key=lambda path: int(path.stem.rpartition("-")[2]))
    output = folder / "merged"
    shutil.rmtree(output, ignore_errors=True)
    return flexo(
        "merge.commands.flexo_merge:main",
        *experts,
        "-o",
        output,
        "--anchor",
        folder / "anchor",
        "--no-check",
        *options,
    )


def make(folder: Path, sizes: Sizes, sparse: bool) -> list[Path]:
    """The inputs, made in a process of their own: a child's peak would count the memory of this one."""
    folder.mkdir()
    measured([sys.executable, "-c", INPUTS, folder, int(sparse), *astuple(sizes)])
    return [folder / "anchor" / "model.safetensors", *sorted(folder.glob("*.safetensors"))]


def fitting(gigabytes: float, experts: int, hidden: int = 2048, ffn: int = 5504, vocabulary: int = 16384) -> Sizes:
    """Sizes of a merged model of about so many GB, reached by the number of layers."""
    layer = 2 * (4 * hidden * hidden + 3 * experts * hidden * ffn)
    layers = round((gigabytes * GB - 4 * vocabulary * hidden) / layer)
    return Sizes(hidden, ffn, max(1, layers), vocabulary, experts)


def speed(work: Path, sizes: Sizes, rounds: int, sparse: bool, cold: bool) -> None:
    files = make(work / "in", sizes, sparse)
    total = sum(path.stat().st_size for path in files)
    ways: dict[str, Callable[[], Run]] = {
        "cp, fsync": lambda: _copy(files, work / "copy"),
        "sha256": lambda: measured([sys.executable, "-c", HASH, *files]),
        "merge --no-verify": lambda: measured(merge(work / "in", "--no-verify"), work / "in"),
        "merge": lambda: measured(merge(work / "in"), work / "in"),
    }
    runs: dict[str, list[Run]] = {name: [] for name in ways}
    for _ in range(rounds):
        for name, way in ways.items():
            if cold:
                forget(files)
            runs[name].append(way())
            shutil.rmtree(work / "in" / "merged", ignore_errors=True)
            shutil.rmtree(work / "copy", ignore_errors=True)
    print(f"{sizes}, {total / GB:.2f} GB, {'sparse' if sparse else 'random'}, {'cold' if cold else 'as cached'}")
    print("| way | s | GB/s | CPU s | peak MB | first byte, s |\n|---|---|---|---|---|---|")
    for name, took in runs.items():
        middle = {what: statistics.median(getattr(run, what) for run in took) for what in ("wall", "cpu", "peak")}
        first = [run.started for run in took if run.started is not None]
        print(
            f"| {name} | {middle['wall']:.2f} | {total / GB / middle['wall']:.2f} | {middle['cpu']:.2f} | "
            f"{middle['peak']:.0f} | {f'{statistics.median(first):.2f}' if first else '-'} |"
        )
    each = list(zip(*runs.values(), strict=True))
    plain = statistics.median(copy.wall / unchecked.wall for copy, _, unchecked, _ in each)
    checked = statistics.median(max(copy.wall, sha.wall) / verified.wall for copy, sha, _, verified in each)
    print(
        f"throughput: --no-verify over cp {plain:.2f} (goal 0.8), merge over slower of cp, sha256 {checked:.2f} (0.9)"
    )
    plain = statistics.median(copy.cpu / unchecked.cpu for copy, _, unchecked, _ in each)
    checked = statistics.median((copy.cpu + sha.cpu) / verified.cpu for copy, sha, _, verified in each)
    print(f"CPU: cp over --no-verify {plain:.2f}, cp + sha256 over merge {checked:.2f}", flush=True)


def _copy(files: list[Path], folder: Path) -> Run:
    folder.mkdir()
    script = 'cp --sparse=never --reflink=never "$@" && for file in "${@: -1}"/*; do sync "$file"; done'
    return measured(["bash", "-c", script, "copy", *files, folder])


def forget(files: Iterable[Path]) -> None:
    """Drops files from the page cache."""
    for path in files:
        with path.open("rb") as file:
            os.fsync(file.fileno())
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def memory(work: Path, sizes: Sizes, sparse: bool) -> None:
    """Peak and start of one merge each way, and what planning it takes."""
    make(work / "in", sizes, sparse)
    total = 0
    for options in ([], ["--no-verify"]):
        run = measured(merge(work / "in", *options), work / "in")
        total = sum(path.stat().st_size for path in (work / "in" / "merged").glob("*.safetensors"))
        what = (
            f"{total / GB:.2f} GB, {sizes.experts} experts, {sizes.layers} layers | {' '.join(options) or 'verified'}"
        )
        print(
            f"| {what} | {run.peak:.0f} | {run.started:.2f} | {run.wall:.1f} | {run.cpu:.1f} |",
            flush=True,
        )
        shutil.rmtree(work / "in" / "merged")
    shutil.rmtree(work / "in")


def commands(work: Path, sizes: Sizes, rounds: int) -> None:
    """What `--help` and `flexo-inspect` add to a bare interpreter, by the clock and of processors; and their peak."""
    entries = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["scripts"]
    expert = make(work / "in", sizes, sparse=True)[1]
    measured(merge(work / "in", "--no-verify"))
    ways = {"python -c pass": [sys.executable, "-c", "pass"]}
    ways |= {f"{name} --help": flexo(entry, "--help") for name, entry in entries.items()}
    inspected = {"an expert file": expert, "a merged folder": work / "in" / "merged"}
    ways |= {
        f"flexo-inspect, {what}": flexo("merge.commands.flexo_inspect:main", path) for what, path in inspected.items()
    }
    ways |= {
        f"flexo-inspect --json, {what}": flexo("merge.commands.flexo_inspect:main", path, "--json")
        for what, path in inspected.items()
    }
    runs: dict[str, list[Run]] = {name: [] for name in ways}
    for _ in range(rounds):
        for name, command in ways.items():
            runs[name].append(measured(command))
    print(f"an expert file of {expert.stat().st_size / GB:.1f} GB, {rounds} rounds, best and median more than python")
    print("| command | best s more | median s more | CPU s more | peak MB |\n|---|---|---|---|---|")
    bare = runs["python -c pass"]
    for name, took in runs.items():
        wall = [run.wall - other.wall for run, other in zip(took, bare, strict=True)]
        cpu = statistics.median(run.cpu - other.cpu for run, other in zip(took, bare, strict=True))
        peak = max(run.peak for run in took)
        print(f"| {name} | {min(wall):.2f} | {statistics.median(wall):.2f} | {cpu:.2f} | {peak:.0f} |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["speed", "memory", "commands"])
    parser.add_argument("--work", type=Path, required=True, help="where files are made, and deleted")
    parser.add_argument("--gigabytes", type=float, nargs="+", default=[1.0], help="of output")
    parser.add_argument("--experts", type=int, nargs="+", default=[3], help="of the merged model, public included")
    parser.add_argument("--sizes", type=int, nargs=5, metavar=("D", "F", "LAYERS", "V", "E"), help="instead of both")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--sparse", action="store_true", help="inputs are holes")
    parser.add_argument("--cold", action="store_true", help="inputs leave the page cache before each run")
    options = parser.parse_args()
    wanted = [fitting(size, experts) for size in options.gigabytes for experts in options.experts]
    print(setting())
    for sizes in [Sizes(*options.sizes)] if options.sizes else wanted:
        with tempfile.TemporaryDirectory(dir=options.work, prefix="flexo-merge-") as folder:
            if options.what == "speed":
                speed(Path(folder), sizes, options.rounds, options.sparse, options.cold)
            elif options.what == "memory":
                memory(Path(folder), sizes, options.sparse)
            else:
                commands(Path(folder), sizes, options.rounds)


def setting() -> str:
    """Where and with what a measurement was made."""
    head = subprocess.run(["git", "rev-parse", "--short", "HEAD"], cwd=ROOT, capture_output=True, text=True)
    names = (line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name"))
    processor = next(names, "").partition(": ")[2]
    load = os.getloadavg()[0]
    python = sys.version.split()[0]
    return f"commit {head.stdout.strip()}, Python {python}, {os.cpu_count()} cores ({processor}), load {load:.0f}"


if __name__ == "__main__":
    main()
