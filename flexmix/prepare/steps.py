"""The datatrove steps that turn one task's part of the input into token ids; everything later works on what they write.

    tasks/00007/train.bin, test.bin    token ids of the task's documents, by split, as in a token shard
                records.npy            a `RECORD` for each document, in order
                counts.json            what became of the others

Text is read once and not copied to disk: duplicates are found by digests and signatures, and left out when the tasks'
tokens are put together.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import asdict
from functools import lru_cache
from itertools import islice
from pathlib import Path

import numpy as np
from datatrove.data import Document
from datatrove.pipeline.base import PipelineStep

from flexmix.documents.corpus import fraction
from flexmix.documents.filters import rejected, scrub
from flexmix.documents.reading import read
from flexmix.documents.source import Piece, Source
from flexmix.prepare import executors
from flexmix.tokens.encoder import PIECE, Encoder, batches, load_encoder
from flexmix.tokens.shard import BATCH
from flexo.errors import InputError

RECORD = np.dtype([("high", "<u8"), ("low", "<u8"), ("bytes", "<u8"), ("tokens", "<u8"), ("held", "?")])
FILTERED = "filtered: "

Counts = Counter[str]


class ReadStep(PipelineStep):  # type: ignore[misc]
    """Yields a task's documents that have text and pass the filters, scrubbed if asked; counts the others."""

    type, name = "reader", "flexo sources"

    def __init__(self, sources: list[Source], tasks: Path, counts: Counts, scrubbed: bool) -> None:
        super().__init__()
        self.sources, self.tasks, self.counts, self.scrubbed = sources, tasks, counts, scrubbed

    def run(self, data: object = None, rank: int = 0, world_size: int = 1) -> Iterator[Document]:
        self.counts.clear()
        try:
            yield from self._documents(rank)
        except InputError as error:
            folder = self.tasks.parent / "stage-read" / executors.ERRORS
            folder.mkdir(parents=True, exist_ok=True)
            (folder / f"{rank:05d}").write_text(str(error), encoding="utf-8")
            raise

    def _documents(self, rank: int) -> Iterator[Document]:
        source, pieces = read_task(self.tasks, self.sources, rank)
        for text, row in read(source, pieces, executors.report):
            self.counts["read"] += 1
            if not text or text.isspace():
                self.counts["empty"] += 1
                continue
            if (name := rejected(source, text, row)) is not None:
                self.counts[FILTERED + name] += 1
                continue
            if self.scrubbed:
                text, emails, phones = scrub(text)
                self.counts["emails"] += emails
                self.counts["phones"] += phones
            yield Document(text=text, id="")


class TokeniseStep(PipelineStep):  # type: ignore[misc]
    """Writes the tokens of a task's documents, and passes the documents on."""

    type, name = "tokenizer", "flexo tokens"

    def __init__(self, model: Path, output: Path, counts: Counts, held_out: float) -> None:
        super().__init__()
        self.model, self.output, self.counts, self.held_out = model, output, counts, held_out

    def run(self, data: Iterable[Document], rank: int = 0, world_size: int = 1) -> Iterator[Document]:
        partial = self.output / f".{rank:05d}-{os.getpid()}"
        for abandoned in self.output.glob(f".{rank:05d}-*"):  # by a process that was killed, or found the disk full
            shutil.rmtree(abandoned, ignore_errors=True)
        partial.mkdir(parents=True)
        encoder = _encoder(self.model)
        records = []
        with (partial / "train.bin").open("wb") as train, (partial / "test.bin").open("wb") as test:
            for batch in batches(data, BATCH, lambda document: len(document.text)):
                texts = [document.text for document in batch]
                ids, lengths = encoder.encode(texts)
                record = self._records(texts)
                record["tokens"] = lengths
                held = np.repeat(record["held"], lengths)
                train.write(ids[~held].tobytes())
                test.write(ids[held].tobytes())
                records.append(record)
                yield from batch
        np.save(partial / "records.npy", np.concatenate([np.zeros(0, RECORD), *records]))
        (partial / "counts.json").write_text(json.dumps(dict(self.counts)))
        target = task_folder(self.output, rank)
        shutil.rmtree(target, ignore_errors=True)
        partial.rename(target)

    def _records(self, texts: list[str]) -> np.ndarray:
        records = np.zeros(len(texts), RECORD)
        for record, text in zip(records, texts, strict=True):
            data = text.encode()
            digest = hashlib.sha256(data).digest()
            record["high"], record["low"] = np.frombuffer(digest, "<u8")[2:]
            record["bytes"], record["held"] = len(data), fraction(digest) < self.held_out
            self.counts["long"] += len(text) > PIECE
        return records


@lru_cache(1)
def _encoder(model: Path) -> Encoder:
    """Kept between the tasks of a process: it knows common words by heart after a while."""
    return load_encoder(model, one_core=True)


def task_folder(output: Path, rank: int) -> Path:
    """Where a task leaves its tokens."""
    return output / f"{rank:05d}"


def write_tasks(path: Path, tasks: list[tuple[int, list[Piece]]]) -> None:
    """Writes down the tasks, a line each: the number of the source and its pieces."""
    lines = (
        json.dumps([number, [list(asdict(piece).values()) for piece in pieces]]) + "\n" for number, pieces in tasks
    )
    path.write_text("".join(lines), encoding="utf-8")


def read_task(path: Path, sources: list[Source], rank: int) -> tuple[Source, list[Piece]]:
    """Task `rank` as `write_tasks` wrote it."""
    with path.open(encoding="utf-8") as lines:
        number, pieces = json.loads(next(islice(lines, rank, None)))
    return sources[number], [Piece(*values) for values in pieces]
