"""Puts what the tasks of a preparation wrote together: two shards without duplicates, and the statistics."""

from __future__ import annotations

import json
import shutil
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from flexmix.prepare.deduplication import Flags, repeated
from flexmix.prepare.options import Options
from flexmix.prepare.statistics import Split, Statistics, histogram, quantiles
from flexmix.prepare.steps import task_folder
from flexmix.prepare.tally import DAMAGED, FILTERED, check_damaged, join_damaged, read_tallies
from flexmix.prepare.unfinished import NOT_READ
from flexmix.tokens.conversation_tokens import NO_ANSWERS, Answers
from flexmix.tokens.encoder import Encoder, Lengths
from flexmix.tokens.shard import ANSWERS, ShardWriter
from flexo.console import progress

COPIED = 1 << 22  # tokens copied at once


class Run(NamedTuple):
    """Documents that stand side by side and are kept: what `ShardWriter.add` takes."""

    ids: npt.NDArray[Any]
    lengths: Lengths
    text_bytes: int
    answers: Answers
    conversations: int


@dataclass(frozen=True)
class Gathered:
    """A preparation put together."""

    statistics: Statistics
    values: dict[str, Counter[str]]  # column -> value -> documents that a filter left out for it


def gather(
    state: Path, result: Path, encoder: Encoder, tasks: int, options: Options, filters: list[str], settings_digest: str
) -> Gathered:
    """Writes `train/` and, if any document is held out, `test/` below `result`, and what was set aside or not read.

    Memory grows by about 100 bytes a document, and not with the text.

    Raises:
        InputError: more lines are damaged than the options allow.
    """
    folders = [task_folder(state / "tasks", rank) for rank in range(tasks)]
    counts, values = read_tallies(folders)
    check_damaged(counts, folders, options)
    join_damaged(folders, result / DAMAGED)
    left_out = _left_out(state / NOT_READ, result)
    records = [np.load(folder / "records.npy", mmap_mode="r") for folder in folders]
    nothing = [np.zeros(len(record), dtype=np.bool_) for record in records]
    exact = nothing if options.duplicates == "keep" else repeated(records)
    near = [_near(state, rank, again) for rank, again in enumerate(exact)] if options.duplicates == "near" else nothing
    kept = [~(again | alike) for again, alike in zip(exact, near, strict=True)]
    splits = _write(result, encoder, folders, records, kept)
    statistics = Statistics(
        read=counts["read"],
        empty=counts["empty"],
        damaged=counts["damaged"],
        filtered={name: counts[FILTERED + name] for name in dict.fromkeys(filters)},
        duplicates_exact=int(sum(map(np.count_nonzero, exact))),
        duplicates_near=int(sum(map(np.count_nonzero, near))),
        train=splits["train"],
        test=splits["test"],
        length_tokens=quantiles(tokens := _lengths(records, kept, "tokens")),
        length_bytes=quantiles(_lengths(records, kept, "bytes")),
        histogram=histogram(tokens),
        emails=counts["emails"],
        phones=counts["phones"],
        long=counts["long"],
        files_left_out=left_out,
        tokenizer_digest=encoder.digest,
        settings_digest=settings_digest,
    )
    return Gathered(statistics, values)


def _write(
    result: Path, encoder: Encoder, folders: list[Path], records: list[Any], kept: list[Flags]
) -> dict[str, Split]:
    """Writes the shards of both splits."""
    splits = {}
    with progress("writing shards", int(sum(record["tokens"].sum() for record in records)), "tokens") as advance:
        for split in ("train", "test"):
            writer = None
            for folder, record, keep in zip(folders, records, kept, strict=True):
                ours = record["held"] == (split == "test")
                if writer is None and (ours & keep).any():
                    (result / split).mkdir()
                    writer = ShardWriter(result / split, encoder)
                for run in _runs(folder, f"{split}.bin", encoder.dtype, record, ours, keep):
                    assert writer is not None, "made with the first document that is kept"
                    writer.add(*run)
                advance(int(record["tokens"][ours].sum()))
            shard = writer.close() if writer else None
            splits[split] = (
                Split(shard.documents, shard.tokens, shard.text_bytes, shard.conversations) if shard else Split(0, 0, 0)
            )
    return splits


def _runs(folder: Path, name: str, dtype: str, record: npt.NDArray[np.void], ours: Flags, kept: Flags) -> Iterator[Run]:
    """Runs of kept documents of one split; at most about `COPIED` tokens at once."""
    records, keep, numbers = record[ours], kept[ours], np.flatnonzero(ours)
    if not keep.any():
        return
    ids = np.memmap(folder / name, dtype=dtype, mode="r")
    answers = np.load(path) if (path := folder / ANSWERS).is_file() else NO_ANSWERS
    lengths = records["tokens"].astype(np.int64)
    starts = np.concatenate([[0], np.cumsum(lengths)])
    assert starts[-1] == len(ids), f"{folder / name} holds {len(ids)} tokens, its records say {starts[-1]}"
    changes = np.flatnonzero(np.diff(keep.astype(np.int8), prepend=0, append=0))
    for first, last in changes.reshape(-1, 2):
        while first < last:
            fit = int(np.searchsorted(starts, starts[first] + COPIED, side="right")) - 1
            end = min(int(last), max(int(first) + 1, fit))
            some = records[first:end]
            yield Run(
                ids[starts[first] : starts[end]],
                lengths[first:end],
                int(some["bytes"].sum()),
                _answers_of(answers, numbers[first:end]),
                int(np.count_nonzero(some["conversation"])),
            )
            first = end


def _answers_of(answers: Answers, numbers: npt.NDArray[np.int64]) -> Answers:
    """The answers of these documents of a task, which are counted anew."""
    ours = answers[np.isin(answers[:, 0], numbers)]
    return np.column_stack([np.searchsorted(numbers, ours[:, 0]), ours[:, 1:]])


def _left_out(not_read: Path, result: Path) -> dict[str, int]:
    """How many files were not read, by suffix; their names are kept beside the shards."""
    lines = not_read.read_text(encoding="utf-8", errors="surrogateescape").split("\n")[:-1]
    if lines:
        shutil.copyfile(not_read, result / NOT_READ)
    names = [Path(json.loads(line)["file"]) for line in lines]
    return dict(sorted(Counter(path.suffix or path.name for path in names).items()))


def _near(state: Path, rank: int, exact: Flags) -> Flags:
    """Documents that are near duplicates of earlier ones, and not exact ones."""
    flags = np.zeros(len(exact), dtype=np.bool_)
    if (path := state / "near" / f"{rank:05d}.npy").is_file():
        flags[np.load(path)] = True
    return flags & ~exact


def _lengths(records: list[Any], kept: list[Flags], name: str) -> npt.NDArray[np.uint64]:
    return np.concatenate([record[name][keep] for record, keep in zip(records, kept, strict=True)])
