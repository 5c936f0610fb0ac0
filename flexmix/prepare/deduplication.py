"""Finding documents that are there twice: exactly, by digest, and nearly, by datatrove's MinHash.

Of several copies the first one in the order of the input is kept. datatrove keeps whichever its union-find put on top,
which is why the clusters are ours.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import regex
from datatrove.pipeline.base import PipelineStep
from datatrove.pipeline.dedup.minhash import MinhashConfig, MinhashDedupBuckets, MinhashDedupSignature
from datatrove.utils.hashing import HashConfig
from datatrove.utils.text import TextNormConfig
from datatrove.utils.word_tokenizers import WordTokenizer

from flexmix.prepare.executors import Stage
from flexmix.tokens.encoder import STRETCH, stretches

# Five words a shingle, 14 bands of 8 hashes: pairs of Jaccard similarity 0.8 are found in 92 of 100 cases. sha1, for
# datatrove's xxhash functions hand text to xxhash, whose version 4 takes bytes only. Numbers count, or else exercises
# that differ in nothing but their numbers would be one.
CONFIG = MinhashConfig(hash_config=HashConfig(hash_fc="sha1"), norm_config=TextNormConfig(norm_numbers=False))
AT_ONCE = 4_000_000  # digests compared in memory at once
SCRIPTS = (  # without spaces between words
    "Han", "Hiragana", "Katakana", "Bopomofo", "Yi", "Thai", "Lao", "Khmer", "Myanmar", "Tibetan", "Tai_Le",
    "New_Tai_Lue", "Tai_Tham", "Tai_Viet", "Balinese", "Javanese",
)  # fmt: skip
SHINGLES = 4096  # hashed at once: 112 numbers of 8 bytes each

Keys = npt.NDArray[np.void]
Flags = npt.NDArray[np.bool_]
Node = tuple[int, int]  # task, document in it


class Words(WordTokenizer):  # type: ignore[misc]  # the base has no types
    """Words by letters and digits, and each sign of scripts without spaces by itself: quick, and alike everywhere."""

    alone = "".join(rf"\p{{{script}}}" for script in SCRIPTS)
    pattern = regex.compile(rf"(?V1)[[{alone}]&&[\p{{L}}\p{{M}}\p{{N}}]]|[\p{{L}}\p{{M}}\p{{N}}_]+")

    def word_tokenize(self, text: str) -> list[str]:
        found: list[str] = self.pattern.findall(text)
        return found

    def sent_tokenize(self, text: str) -> list[str]:
        raise NotImplementedError("near duplicates are found by words")

    def span_tokenize(self, text: str) -> list[tuple[int, int]]:
        raise NotImplementedError("near duplicates are found by words")


class Signatures(MinhashDedupSignature):  # type: ignore[misc]  # the base has no types
    """datatrove's signatures, with memory that does not grow with the length of a document."""

    def __init__(self, output: Path) -> None:
        super().__init__(str(output), CONFIG, language=Words())

    def get_shingles(self, text: str) -> Any:
        return np.concatenate([super(Signatures, self).get_shingles(part) for part in stretches(text, STRETCH)])

    def get_signature(self, shingles: Any) -> list[list[int]]:
        parts = [
            np.array(super(Signatures, self).get_signature(shingles[first : first + SHINGLES]), dtype=np.uint64)
            for first in range(0, len(shingles), SHINGLES)
        ]
        signature: list[list[int]] = np.minimum.reduce(parts).tolist()
        return signature


class Clusters(PipelineStep):  # type: ignore[misc]  # the base has no types
    """Joins pairs into clusters, and writes for each task which of its documents are not the first of theirs."""

    type, name = "dedup", "flexo clusters"

    def __init__(self, pairs: Path, output: Path) -> None:
        super().__init__()
        self.pairs, self.output = pairs, output

    def run(self, data: object = None, rank: int = 0, world_size: int = 1) -> None:
        later: dict[int, list[int]] = defaultdict(list)
        for task, document in later_ones(self._pairs()):
            later[task].append(document)
        self.output.mkdir(parents=True, exist_ok=True)
        for task, documents in later.items():
            np.save(self.output / f"{task:05d}.npy", np.array(sorted(documents), dtype=np.int64))

    def _pairs(self) -> Iterator[tuple[Node, Node]]:
        for path in sorted(self.pairs.glob("*.dups")):
            for a, b, c, d in np.fromfile(path, "<u4").reshape(-1, 4).tolist():
                yield (a, b), (c, d)


def near_stages(state: Path) -> list[Stage]:
    """From the signatures in `state/signatures` to the lists in `state/near`."""
    buckets = MinhashDedupBuckets(str(state / "signatures"), str(state / "pairs"), config=CONFIG, lines_to_buffer=1000)
    join = Clusters(state / "pairs", state / "near")
    return [
        Stage("pairs", "comparing signatures", [buckets], CONFIG.num_buckets, state / "stage-pairs"),
        Stage("clusters", "joining near duplicates", [join], 1, state / "stage-clusters"),
    ]


def later_ones(pairs: Iterable[tuple[Node, Node]]) -> list[Node]:
    """All nodes of a graph but the smallest of each connected part."""
    parent: dict[Node, Node] = {}

    def root(node: Node) -> Node:
        parent.setdefault(node, node)
        while parent[node] != node:
            parent[node] = parent[parent[node]]
            node = parent[node]
        return node

    for a, b in pairs:
        first, second = sorted((root(a), root(b)))
        parent[second] = first
    return [node for node in parent if root(node) != node]


def repeated(tasks: Sequence[Keys]) -> list[Flags]:
    """For each task's records, which of the documents stood before, there or in an earlier task.

    Memory: one byte a document, and about 200 MB for the digests that are compared at once.
    """
    flags = [np.zeros(len(records), dtype=np.bool_) for records in tasks]
    starts = np.cumsum([0, *map(len, tasks)])
    parts = 1 + int(starts[-1]) // AT_ONCE
    for part in range(parts):
        found = [np.flatnonzero(records["low"] % parts == part) for records in tasks]
        places = np.concatenate([start + at for start, at in zip(starts[:-1], found, strict=True)])
        high, low = (
            np.concatenate([records[name][at] for records, at in zip(tasks, found, strict=True)])
            for name in ("high", "low")
        )
        order = np.lexsort((places, high, low))
        same = (high[order][1:] == high[order][:-1]) & (low[order][1:] == low[order][:-1])
        again = np.sort(places[order[1:][same]])
        for task, (start, end) in enumerate(pairwise(starts)):
            low_end, high_end = np.searchsorted(again, (start, end))
            flags[task][again[low_end:high_end] - start] = True
    return flags
