"""What became of every document of a preparation: counts that add up, as a table, as JSON and as a plot."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from flexmix.tokens.shard import is_shard, open_shard
from flexo.errors import InputError

FILE, PLOT = "statistics.json", "statistics.png"
QUANTILES = (0.0, 0.05, 0.25, 0.5, 0.75, 0.95, 1.0)
VERSION = 1


@dataclass(frozen=True)
class Split:
    """One of the two shards."""

    documents: int
    tokens: int  # end-of-text tokens included
    text_bytes: int
    conversations: int = 0  # of the documents


@dataclass(frozen=True)
class Statistics:
    """Counts of a preparation. `read` is the sum of all other counts of documents."""

    read: int
    empty: int
    filtered: dict[str, int]  # by the filter that refused first
    duplicates_exact: int
    duplicates_near: int
    train: Split
    test: Split
    length_tokens: dict[str, int]  # quantile -> tokens of a kept document
    length_bytes: dict[str, int]
    histogram: list[int]  # kept documents of [2^k, 2^(k+1)) tokens, k = 0, 1, ...
    emails: int  # replaced
    phones: int
    long: int  # documents encoded in several stretches
    files_left_out: dict[str, int]  # in folders, by suffix
    tokenizer_digest: str
    settings_digest: str
    damaged: int = 0  # lines that were set aside
    version: int = field(default=VERSION)

    def __post_init__(self) -> None:
        gone = self.empty + self.damaged + sum(self.filtered.values()) + self.duplicates_exact + self.duplicates_near
        kept = self.train.documents + self.test.documents
        assert self.read == gone + kept, f"{self.read} documents read, {gone} left out, {kept} kept: one is lost"

    @property
    def bytes_per_token(self) -> float:
        """UTF-8 bytes of the kept text over its tokens, the end-of-text tokens not counted."""
        tokens = self.train.tokens + self.test.tokens - self.train.documents - self.test.documents
        return (self.train.text_bytes + self.test.text_bytes) / max(1, tokens)

    def write(self, folder: Path) -> None:
        """Writes `statistics.json` into a folder."""
        about = asdict(self) | {"bytes_per_token": round(self.bytes_per_token, 4)}
        (folder / FILE).write_text(json.dumps(about, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def read_statistics(folder: Path) -> Statistics:
    """The statistics of a prepared folder; raises `InputError` if it is none."""
    try:
        about = json.loads((folder / FILE).read_text(encoding="utf-8"))
        about.pop("bytes_per_token")
        train, test = (Split(**about.pop(split)) for split in ("train", "test"))
        return Statistics(train=train, test=test, **about)
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise InputError(f"{folder}: not a folder made by flexo-data prepare ({FILE}: {error}).") from None


def check_prepared(folder: Path | str) -> Statistics:
    """The statistics of a prepared folder, after checking that its shards are as they were written.

    Raises `InputError` if it is none, or a shard is missing or was changed.
    """
    folder = Path(folder)
    found = read_statistics(folder)
    for split in ("train", "test"):
        if is_shard(folder / split) or getattr(found, split).documents:
            open_shard(folder / split)
    return found


def quantiles(lengths: npt.NDArray[np.integer[Any]]) -> dict[str, int]:
    """Lengths at `QUANTILES`, each a length that occurs; empty for no documents."""
    if not len(lengths):
        return {}
    values = np.quantile(lengths, QUANTILES, method="inverted_cdf")
    return {f"{q:g}": int(value) for q, value in zip(QUANTILES, values, strict=True)}


def histogram(tokens: npt.NDArray[np.integer[Any]]) -> list[int]:
    """How many lengths lie in [2^k, 2^(k+1)), for k from 0."""
    counts: list[int] = np.bincount(np.frexp(tokens.astype(np.float64))[1] - 1).tolist() if len(tokens) else []
    return counts


def print_table(found: Statistics, title: str) -> None:
    """The table on the terminal."""
    from rich.console import Console
    from rich.table import Table

    table = Table(title=title, title_justify="left")
    table.add_column("documents")
    table.add_column("", justify="right")
    table.add_column("share", justify="right")

    def row(name: str, count: int, end: bool = False) -> None:
        table.add_row(name, f"{count:,}", f"{100 * count / max(1, found.read):.1f} %", end_section=end)

    row("read", found.read, end=True)
    row("empty", found.empty)
    if found.damaged:
        row("damaged, set aside", found.damaged)
    for name, count in found.filtered.items():
        row(f"filtered: {name}", count)
    row("duplicates, exact", found.duplicates_exact)
    row("duplicates, near", found.duplicates_near)
    row("train", found.train.documents)
    row("test (held out)", found.test.documents, end=True)
    for name, split in (("train", found.train), ("test", found.test)):
        table.add_row(f"tokens, {name}", f"{split.tokens:,}", "")
    table.add_row("bytes per token", f"{found.bytes_per_token:.3f}", "")
    if found.length_tokens:
        low, middle, high = (found.length_tokens[q] for q in ("0.05", "0.5", "0.95"))
        table.add_row("tokens a document: 5 %, half, 95 %", f"{low:,} / {middle:,} / {high:,}", "")
    Console().print(table)
    for count, said in (
        (found.long, "longer than a million characters, encoded in stretches"),
        (found.emails, "e-mail addresses blotted out"),
        (found.phones, "phone numbers blotted out"),
    ):
        if count:
            print(f"{count:,} {said}")
    if conversations := found.train.conversations + found.test.conversations:
        print(f"{conversations:,} conversations, written out by the chat template")
    if found.files_left_out:
        print("files not read: " + ", ".join(f"{count} {suffix}" for suffix, count in found.files_left_out.items()))


def draw(found: Statistics, path: Path) -> bool:
    """Draws where documents went and how long they are, as PNG; False if matplotlib is not installed."""
    try:
        from matplotlib.figure import Figure
    except ImportError:
        return False
    figure = Figure(figsize=(10, 3.6), layout="constrained")
    left, right = figure.subplots(1, 2)
    went = {
        "train": found.train.documents, "test": found.test.documents, "near duplicate": found.duplicates_near,
        "exact duplicate": found.duplicates_exact, **found.filtered, "empty": found.empty, "damaged": found.damaged,
    }  # fmt: skip
    left.barh(list(went), list(went.values()), color="tab:blue")
    left.invert_yaxis()
    left.set_xlabel(f"documents (of {found.read:,} read)")
    right.bar(range(len(found.histogram)), found.histogram, width=0.9, align="edge", color="tab:blue")
    right.set_xticks(range(len(found.histogram) + 1), [f"{1 << k:,}" for k in range(len(found.histogram) + 1)])
    right.tick_params(axis="x", rotation=60)
    right.set_xlabel("tokens in a kept document")
    figure.savefig(path, dpi=120, metadata={"Software": None})
    return True
