"""Padding and cut documents: plain concatenation against best fit, on real corpora.

python benchmarks/packing.py --corpora data/corpora --anchor anchor        (a minute; corpora: flexo-data sample)

A document is cut if its tokens lie in more than one window, or if its end falls off the shard's; "needlessly" counts
those that would fit into one window. Concatenation has no padding; "padding alone" is that of a document a window.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import numpy as np

from flexmix.documents.corpus import find_split
from flexmix.packing.best_fit import BestFit
from flexmix.packing.windows import Windows
from flexmix.tokens.shard import TokenShard, prepare_shard

COLUMNS = (
    "corpus", "documents", "median tokens", "T", "concat: cut", "needlessly", "best fit: cut", "padding",
    "padding alone", "plan",
)  # fmt: skip


def concatenated(shard: TokenShard, length: int) -> tuple[float, float]:
    """Share of documents cut, and of documents cut needlessly."""
    windows = Windows(shard, length, str(shard.folder))
    first, last = shard.starts[:-1] // length, (shard.starts[1:] - 1) // length
    cut = (first != last) | (last >= len(windows))
    short = np.diff(shard.starts) <= length
    return float(cut.mean()), float((cut & short).mean())


def padding_alone(shard: TokenShard, length: int) -> float:
    """Share of padding if every piece of a document had a window of its own."""
    return 1 - shard.tokens / (length * int((-(-np.diff(shard.starts) // length)).sum()))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--corpora", type=Path, default=Path("data/corpora"))
    parser.add_argument("--anchor", type=Path, default=Path("anchor"), help="for its tokenizer")
    parser.add_argument("--cache", type=Path, default=Path("data/tokens"))
    parser.add_argument("--lengths", type=int, nargs="+", default=[256, 1024])
    arguments = parser.parse_args()
    print("| " + " | ".join(COLUMNS) + " |")
    print("|---" * len(COLUMNS) + "|")
    for folder in sorted(path for path in arguments.corpora.iterdir() if path.is_dir()):
        shard = prepare_shard(find_split(folder, "train"), arguments.anchor, arguments.cache)
        sizes = np.diff(shard.starts)
        for length in arguments.lengths:
            cut, needlessly = concatenated(shard, length)
            start = time.perf_counter()
            windows = BestFit(shard, length)
            seconds = time.perf_counter() - start
            cells = [folder.name, f"{shard.documents:,}", f"{np.median(sizes):.0f}", length, f"{cut:.1%}"]
            cells += [f"{needlessly:.1%}", f"{(sizes > length).mean():.1%}", f"{windows.padding:.2%}"]
            cells += [f"{padding_alone(shard, length):.0%}", f"{1000 * seconds:.0f} ms"]
            print(f"| {' | '.join(map(str, cells))} |")


if __name__ == "__main__":
    main()
