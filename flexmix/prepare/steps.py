"""The datatrove steps that turn one task's part of the input into token ids; everything later works on what they write.

    tasks/00007/train.bin, test.bin    token ids of the task's documents, by split, as in a token shard
                records.npy            a `RECORD` for each document, in order
                answers.npy            of conversations: [S, 3] document, first token of an answer, token behind it
                counts.json            what became of the others
                damaged.jsonl          lines that were set aside

Text is read once and not copied to disk: duplicates are found by digests and signatures, and left out when the tasks'
tokens are put together.
"""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Iterable, Iterator
from dataclasses import replace
from functools import lru_cache
from pathlib import Path

import numpy as np
from datatrove.data import Document
from datatrove.pipeline.base import PipelineStep

from flexmix.documents import source as documents
from flexmix.documents.conversations import ChatTemplate, find_template
from flexmix.documents.corpus import fraction
from flexmix.documents.filters import rejected, scrub
from flexmix.documents.reading import read
from flexmix.documents.source import Conversation, Damaged, SetAside, Source
from flexmix.prepare import executors
from flexmix.prepare.options import Options
from flexmix.prepare.tally import Tally
from flexmix.prepare.unfinished import TASKS, read_task
from flexmix.tokens.conversation_tokens import NO_ANSWERS, encode_documents
from flexmix.tokens.encoder import STRETCH, Encoder, batches, load_encoder
from flexmix.tokens.shard import ANSWERS, BATCH
from flexo.errors import InputError

RECORD = np.dtype(
    [("high", "<u8"), ("low", "<u8"), ("bytes", "<u8"), ("tokens", "<u8"), ("held", "?"), ("conversation", "?")]
)
CONVERSATION = "conversation"  # in a document's metadata


class ReadStep(PipelineStep):  # type: ignore[misc]
    """Yields a task's documents that have text and pass the filters, scrubbed if asked; counts the others."""

    type, name = "reader", "flexo sources"

    def __init__(self, sources: list[Source], state: Path, model: Path, tally: Tally, options: Options) -> None:
        super().__init__()
        self.sources, self.state, self.model, self.tally, self.options = sources, state, model, tally, options

    def run(self, data: object = None, rank: int = 0, world_size: int = 1) -> Iterator[Document]:
        self.tally.clear()
        try:
            yield from self._documents(rank)
        except InputError as error:
            folder = self.state / "stage-read" / executors.ERRORS
            folder.mkdir(parents=True, exist_ok=True)
            (folder / f"{rank:05d}").write_text(str(error), encoding="utf-8")
            raise

    def _documents(self, rank: int) -> Iterator[Document]:
        source, pieces = read_task(self.state / TASKS, self.sources, rank)
        counts, template = self.tally.counts, _template(self.state, self.model)
        set_aside = self._set_aside if self.options.skip_damaged else None
        for document in read(source, pieces, executors.report, set_aside, template):
            counts["read"] += 1
            if not document.text or document.text.isspace():
                counts["empty"] += 1
                continue
            if (name := rejected(source, document.text, document.columns)) is not None:
                self.tally.left_out(source, name, document.columns)
                continue
            if self.options.scrub:
                document = self._scrubbed(document, template)
            yield Document(text=document.text, id="", metadata={CONVERSATION: document.conversation})

    def _set_aside(self, found: SetAside) -> None:
        """Raises `InputError` as soon as a number that is allowed is exceeded; a share is known at the end."""
        self.tally.set_aside(found)
        if isinstance(self.options.skip_damaged, int) and self.tally.counts["damaged"] > self.options.skip_damaged:
            raise InputError(f"{found} More damaged lines than --skip-damaged {self.options.skip_damaged} allows.")

    def _scrubbed(self, document: documents.Document, template: ChatTemplate) -> documents.Document:
        """A conversation is scrubbed message by message and written out again, so that its answers are known."""
        talk = document.conversation
        if talk is None:
            return document._replace(text=self._clean(document.text))
        messages = [message | {"content": self._clean(message["content"])} for message in talk.messages]
        written = template.write_out(messages)
        assert not isinstance(written, Damaged), f"a template that takes a conversation takes it scrubbed: {written}"
        return document._replace(text=written.text, conversation=written)

    def _clean(self, text: str) -> str:
        text, emails, phones = scrub(text)
        self.tally.counts["emails"] += emails
        self.tally.counts["phones"] += phones
        return text


class TokeniseStep(PipelineStep):  # type: ignore[misc]
    """Writes the tokens of a task's documents, and passes the documents on."""

    type, name = "tokenizer", "flexo tokens"

    def __init__(self, model: Path, output: Path, tally: Tally, held_out: float) -> None:
        super().__init__()
        self.model, self.output, self.tally, self.held_out = model, output, tally, held_out

    def run(self, data: Iterable[Document], rank: int = 0, world_size: int = 1) -> Iterator[Document]:
        partial = self.output / f".{rank:05d}-{os.getpid()}"
        for abandoned in self.output.glob(f".{rank:05d}-*"):  # by a process that was killed, or found the disk full
            shutil.rmtree(abandoned, ignore_errors=True)
        partial.mkdir(parents=True)
        encoder = _encoder(self.model)
        records, answers, count = [np.zeros(0, RECORD)], [NO_ANSWERS], 0
        with (partial / "train.bin").open("wb") as train, (partial / "test.bin").open("wb") as test:
            for batch in batches(data, BATCH, lambda document: len(document.text)):
                texts = [document.text for document in batch]
                talks = [document.metadata[CONVERSATION] for document in batch]
                ids, lengths, found = encode_documents(encoder, texts, talks)
                record = self._records(texts, talks)
                record["tokens"] = lengths
                held = np.repeat(record["held"], lengths)
                train.write(ids[~held].tobytes())
                test.write(ids[held].tobytes())
                records.append(record)
                found[:, 0] += count
                answers.append(found)
                count += len(batch)
                yield from batch
        np.save(partial / "records.npy", np.concatenate(records))
        if sum(map(len, answers)):
            np.save(partial / ANSWERS, np.concatenate(answers))
        self.tally.write(partial)
        target = task_folder(self.output, rank)
        shutil.rmtree(target, ignore_errors=True)
        partial.rename(target)

    def _records(self, texts: list[str], talks: list[Conversation | None]) -> np.ndarray:
        records = np.zeros(len(texts), RECORD)
        for record, text, talk in zip(records, texts, talks, strict=True):
            data = text.encode()
            digest = hashlib.sha256(data).digest()
            record["high"], record["low"] = np.frombuffer(digest, "<u8")[2:]
            record["bytes"], record["held"] = len(data), fraction(digest) < self.held_out
            record["conversation"] = talk is not None
            self.tally.counts["long"] += len(text) > STRETCH
        return records


@lru_cache(1)
def _encoder(model: Path) -> Encoder:
    """Kept between the tasks of a process: it knows common words by heart after a while."""
    return load_encoder(model, one_core=True)


@lru_cache(1)
def _template(state: Path, model: Path) -> ChatTemplate:
    """As it was when the preparation began; messages name the model's own folder."""
    return replace(find_template(state), folder=model)


def task_folder(output: Path, rank: int) -> Path:
    """Where a task leaves its tokens."""
    return output / f"{rank:05d}"
