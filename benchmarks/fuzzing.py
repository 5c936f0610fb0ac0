"""Reads hostile expert files for minutes and counts what comes of them; docs/security.md keeps the counts.

python -m benchmarks.fuzzing --minutes 12 --seed 1

Every file must be refused with one of our own messages, or be read to the values that PyTorch or safetensors reads;
meanwhile nothing is run or written, no file takes longer than 10 seconds, and no more than 512 MB of address space are
taken. The first fault stops the campaign, shrunk by Hypothesis to a small example.
"""

from __future__ import annotations

import argparse
import json
import resource
import signal
import tempfile
import time
from collections import Counter
from pathlib import Path

import torch  # before the limit, which it would not fit into
from hypothesis import HealthCheck, Phase, given, seed, settings

from merge.formats.expert_file import open_expert
from merge.formats.expert_header import parse_header
from tests.merge.fuzz import Sample, hostile, kind_of, read, read_by_others, samples
from tests.merge.watch import watched

GOLDEN = Path(__file__).parent.parent / "tests" / "golden" / "expert-v1.safetensors"
ROUND = 500  # inputs between two looks at the clock
ROOM = 512 << 20
SECONDS = 10


def campaign(sample: Sample, kind: str, path: Path, number: int, counts: Counter[str]) -> None:
    """One round of one kind of change."""

    @seed(number)
    @settings(
        max_examples=ROUND, database=None, deadline=None, suppress_health_check=list(HealthCheck),
        phases=[Phase.generate, Phase.shrink],
    )  # fmt: skip
    @given(data=hostile(sample)[kind])
    def one(data: bytes) -> None:
        path.write_bytes(data)
        signal.alarm(SECONDS)
        with watched() as seen:
            found = read(path)
        signal.alarm(0)
        assert not seen, seen
        if isinstance(found, str):
            counts[kind_of(found)] += 1
            return
        others = read_by_others(open_expert(path))
        counts["read" if others else "read, refused by others"] += 1
        assert others is None or others == found, "we read other values than others do"

    one()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=12)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    signal.signal(signal.SIGALRM, _hung)
    torch.set_num_threads(1)
    header = parse_header(json.dumps(json.loads(GOLDEN.with_suffix(".safetensors.json").read_text())), "golden")
    counts: dict[str, Counter[str]] = {}
    end = time.monotonic() + 60 * options.minutes
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        files = samples(folder, header.with_tensors({}))
        for sample in files:
            read_by_others(open_expert(folder / f"x{sample.suffix}"))  # imports what it needs
        pages = int(Path("/proc/self/statm").read_text().split()[0])
        limit = pages * resource.getpagesize() + ROOM
        resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
        number = options.seed
        while time.monotonic() < end:
            for sample in files:
                for kind in hostile(sample):
                    found = counts.setdefault(f"{sample.suffix} {kind}", Counter())
                    campaign(sample, kind, folder / f"y{sample.suffix}", number, found)
            number += 1
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(
        "| container, change | files | refused | messages | read as others do | read, refused by others |\n|"
        + "---|" * 6
    )
    for label, found in counts.items():
        alike, alone = found["read"], found["read, refused by others"]
        refused = found.total() - alike - alone
        messages = len(found.keys() - {"read", "read, refused by others"})
        print(f"| {label} | {found.total()} | {refused} | {messages} | {alike} | {alone} |")
    print(f"\n{sum(found.total() for found in counts.values())} files, peak memory {peak:.0f} MB")


def _hung(_signal: int, _frame: object) -> None:
    raise AssertionError(f"a file took more than {SECONDS} seconds")


if __name__ == "__main__":
    main()
