"""Puts what the tasks of a preparation wrote together: two shards without duplicates, and the statistics."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from flexmix.prepare.deduplication import Flags, repeated
from flexmix.prepare.statistics import Split, Statistics, histogram, quantiles
from flexmix.prepare.steps import FILTERED, task_folder
from flexmix.tokens.encoder import Encoder
from flexmix.tokens.shard import ShardWriter
from flexo.console import progress

COPIED = 1 << 22  # tokens copied at once


def gather(
    state: Path,
    result: Path,
    encoder: Encoder,
    tasks: int,
    duplicates: str,
    *,
    filters: list[str],
    files_left_out: dict[str, int],
    settings_digest: str,
) -> Statistics:
    """Writes `train/` and, if any document is held out, `test/` below `result`.

    Memory grows by about 100 bytes a document, and not with the text.
    """
    folders = [task_folder(state / "tasks", rank) for rank in range(tasks)]
    records = [np.load(folder / "records.npy", mmap_mode="r") for folder in folders]
    counts: Counter[str] = Counter()
    for folder in folders:
        counts.update(json.loads((folder / "counts.json").read_text(encoding="utf-8")))
    nothing = [np.zeros(len(record), dtype=np.bool_) for record in records]
    exact = nothing if duplicates == "keep" else repeated(records)
    near = [_near(state, rank, again) for rank, again in enumerate(exact)] if duplicates == "near" else nothing
    kept = [~(again | alike) for again, alike in zip(exact, near, strict=True)]
    total = int(sum(record["tokens"].sum() for record in records))
    splits = {}
    with progress("writing shards", total, "tokens") as advance:
        for split in ("train", "test"):
            writer = None
            for folder, record, keep in zip(folders, records, kept, strict=True):
                ours = record["held"] == (split == "test")
                if writer is None and (ours & keep).any():
                    (result / split).mkdir()
                    writer = ShardWriter(result / split, encoder)
                for ids, lengths, text_bytes in _runs(folder / f"{split}.bin", encoder.dtype, record[ours], keep[ours]):
                    assert writer is not None
                    writer.add(ids, lengths, text_bytes)
                advance(int(record["tokens"][ours].sum()))
            shard = writer.close() if writer else None
            splits[split] = Split(shard.documents, shard.tokens, shard.text_bytes) if shard else Split(0, 0, 0)
    return Statistics(
        read=counts["read"],
        empty=counts["empty"],
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
        files_left_out=files_left_out,
        tokenizer_digest=encoder.digest,
        settings_digest=settings_digest,
    )


def _runs(
    path: Path, dtype: str, records: npt.NDArray[np.void], keep: Flags
) -> Iterator[tuple[npt.NDArray[Any], npt.NDArray[np.int64], int]]:
    """Runs of kept documents: their ids, lengths and bytes; at most about `COPIED` tokens at once."""
    if not keep.any():
        return
    ids = np.memmap(path, dtype=dtype, mode="r")
    lengths = records["tokens"].astype(np.int64)
    starts = np.concatenate([[0], np.cumsum(lengths)])
    assert starts[-1] == len(ids), f"{path} holds {len(ids)} tokens, its records say {starts[-1]}"
    changes = np.flatnonzero(np.diff(keep.astype(np.int8), prepend=0, append=0))
    for first, last in changes.reshape(-1, 2):
        while first < last:
            fit = int(np.searchsorted(starts, starts[first] + COPIED, side="right")) - 1
            end = min(int(last), max(int(first) + 1, fit))
            yield ids[starts[first] : starts[end]], lengths[first:end], int(records["bytes"][first:end].sum())
            first = end


def _near(state: Path, rank: int, exact: Flags) -> Flags:
    """Documents that are near duplicates of earlier ones, and not exact ones."""
    flags = np.zeros(len(exact), dtype=np.bool_)
    if (path := state / "near" / f"{rank:05d}.npy").is_file():
        flags[np.load(path)] = True
    return flags & ~exact


def _lengths(records: list[Any], kept: list[Flags], name: str) -> npt.NDArray[np.uint64]:
    return np.concatenate([record[name][keep] for record, keep in zip(records, kept, strict=True)])
