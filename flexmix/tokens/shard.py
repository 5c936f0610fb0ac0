"""Documents to token shards: a folder of memory-mapped token ids with document boundaries, written once and kept.

    tokens.bin       ids, uint16 or uint32, documents back to back; every document starts with the end-of-text token
    documents.npy    int64 [documents + 1], where each document starts, and the end
    answers.npy      int64 [S, 2], of conversations alone: the tokens that are answers, first and behind the last
    shard.json       counts, the tokenizer's digest, the id of the end-of-text token, size and sha256 of these files

The end-of-text token that starts a document is at once the label that ends the one before, and the first real token has
something to be predicted from.
"""

from __future__ import annotations

import hashlib
import json
from array import array
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from dataclasses import field as dataclass_field
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from flexmix.documents.conversations import ChatTemplate, find_template
from flexmix.documents.corpus import read_documents, require_text
from flexmix.documents.files import find_files, named
from flexmix.documents.reading import cut_into_tasks, is_saved, read
from flexmix.documents.source import Document, Source
from flexmix.tokens.conversation_tokens import NO_ANSWERS, Answers, encode_documents
from flexmix.tokens.encoder import Encoder, Ids, Lengths, batches, load_encoder
from flexo.atomic_files import sha256_file
from flexo.console import progress
from flexo.errors import InputError
from flexo.make_once import keep
from flexo.verbosity import note

VERSION = 2
BATCH = 512  # documents handed to the tokenizer at once
HASHED = 4 << 30  # bytes; files up to this size are hashed when a shard is opened, at about 1.6 GB/s
TOKENS, STARTS, ANSWERS, ABOUT = "tokens.bin", "documents.npy", "answers.npy", "shard.json"
RULES = 2  # raised when the same file is read as other documents, so that kept shards are made anew


@dataclass(frozen=True)
class TokenShard:
    """Tokenised documents, mapped from disk."""

    folder: Path
    documents: int
    tokens: int  # the end-of-text tokens included
    text_bytes: int  # UTF-8 bytes of the documents
    empty: int  # documents without text, left out
    end_of_text: int
    tokenizer_digest: str
    dtype: str
    version: int = VERSION
    files: dict[str, dict[str, Any]] = dataclass_field(default_factory=dict)  # name -> bytes, sha256
    conversations: int = 0  # documents whose answers are known

    @cached_property
    def ids(self) -> Ids:
        """Token ids [tokens], read-only and mapped."""
        return np.memmap(self.folder / TOKENS, dtype=self.dtype, mode="r", shape=(self.tokens,))

    @cached_property
    def starts(self) -> npt.NDArray[np.int64]:
        """Where each document starts [documents + 1], in tokens."""
        starts: npt.NDArray[np.int64] = np.load(self.folder / STARTS)
        return starts

    @cached_property
    def answers(self) -> npt.NDArray[np.int64]:
        """The tokens of answers [S, 2], first and behind the last, in order. The end-of-text token that follows an
        answer at the end of its document is one of them.
        """
        if ANSWERS not in self.files:
            return np.zeros((0, 2), np.int64)
        answers: npt.NDArray[np.int64] = np.load(self.folder / ANSWERS)
        return answers


class ShardWriter:
    """Writes a shard into a folder; memory grows by 8 bytes a document."""

    def __init__(self, folder: Path, encoder: Encoder) -> None:
        self.folder, self.encoder = folder, encoder
        self.text_bytes, self.conversations, self._starts, self._answers = 0, 0, array("q", [0]), array("q")
        self._hash = hashlib.sha256()
        self._file = (folder / TOKENS).open("wb")

    def add(
        self, ids: Ids, lengths: Lengths, text_bytes: int, answers: Answers = NO_ANSWERS, conversations: int = 0
    ) -> None:
        """Appends documents: their ids back to back, the length of each in tokens, their UTF-8 bytes in all.

        `answers` are those of the documents that are conversations, of which there are `conversations`.
        """
        assert len(ids) == lengths.sum(), "lengths and ids do not fit"
        starts = self._starts[-1] + np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)])
        self._answers.frombytes((starts[answers[:, :1]] + answers[:, 1:]).tobytes())
        self.conversations += conversations
        data = ids.astype(self.encoder.dtype, copy=False).tobytes()
        self._hash.update(data)
        self._file.write(data)
        self._starts.frombytes(starts[1:].tobytes())
        self.text_bytes += text_bytes

    @property
    def documents(self) -> int:
        return len(self._starts) - 1

    def close(self, empty: int = 0) -> TokenShard:
        """Writes boundaries and `shard.json`."""
        self._file.close()
        np.save(self.folder / STARTS, np.frombuffer(self._starts, dtype=np.int64))
        digests = {TOKENS: self._hash.hexdigest(), STARTS: sha256_file(self.folder / STARTS)}
        if self.conversations:
            np.save(self.folder / ANSWERS, np.frombuffer(self._answers, dtype=np.int64).reshape(-1, 2))
            digests[ANSWERS] = sha256_file(self.folder / ANSWERS)
        shard = TokenShard(
            folder=self.folder,
            documents=self.documents,
            tokens=self._starts[-1],
            text_bytes=self.text_bytes,
            empty=empty,
            end_of_text=self.encoder.end_of_text,
            tokenizer_digest=self.encoder.digest,
            dtype=self.encoder.dtype,
            files={
                name: {"bytes": (self.folder / name).stat().st_size, "sha256": digest}
                for name, digest in digests.items()
            },
            conversations=self.conversations,
        )
        about = {name: value for name, value in asdict(shard).items() if name != "folder"}
        if not shard.conversations:
            del about["conversations"]  # what is of text alone is as it always was
        (self.folder / ABOUT).write_text(json.dumps(about, indent=2) + "\n")
        return shard

    def discard(self) -> None:
        """Closes the file without finishing the shard."""
        self._file.close()


def is_shard(path: Path) -> bool:
    """Whether `path` is a folder that holds a token shard."""
    return (path / ABOUT).is_file()


def open_shard(folder: Path, model: Path | None = None) -> TokenShard:
    """Opens a shard and checks that it is what was written.

    Args:
        folder: with `tokens.bin`, `documents.npy`, `shard.json` and, of conversations, `answers.npy`.
        model: a model folder whose tokenizer must be the one that made the shard; None takes any.

    Raises:
        InputError: a file is missing, has another size or sha256 than when it was written (files over `HASHED` bytes
            are judged by size alone), or the tokenizer is another.
    """
    try:
        about = json.loads((folder / ABOUT).read_text(encoding="utf-8"))
        shard = TokenShard(folder=folder, **about)
        listed = {name: (int(info["bytes"]), str(info["sha256"])) for name, info in shard.files.items()}
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise InputError(f"{folder / ABOUT}: not a token shard ({error}). Prepare the text again.") from None
    expected = {TOKENS, STARTS, ANSWERS} if shard.conversations else {TOKENS, STARTS}
    if shard.version != VERSION or listed.keys() != expected:
        raise InputError(
            f"{folder / ABOUT}: a shard of version {shard.version}, this program reads version {VERSION}. "
            "Prepare the text again."
        )
    for name, (size, digest) in listed.items():
        _check_file(folder / name, size, digest)
    if model is not None:
        encoder = load_encoder(model)
        if (encoder.digest, encoder.end_of_text) != (shard.tokenizer_digest, shard.end_of_text):
            raise InputError(
                f"{folder}: made with the tokenizer {shard.tokenizer_digest[:12]} and end-of-text token "
                f"{shard.end_of_text}, but {model} has {encoder.digest[:12]} and {encoder.end_of_text}. Prepare the "
                f"text for this anchor: flexo-data prepare SOURCE -o DIR --tokenizer {model}"
            )
    return shard


def text_digest(source: Path) -> str:
    """What identifies a run's text: the sha256 of a file, of a token shard's `shard.json`, or of a folder's files."""
    if is_shard(source):
        return sha256_file(source / ABOUT)
    if source.is_file():
        return sha256_file(source)
    if is_saved(source):
        files = sorted(path for path in source.rglob("*") if path.is_file())
    else:
        files = list(dict.fromkeys(one.stored.path for one in find_files(Source(str(source))).read))
    listed = [[path.relative_to(source).as_posix(), sha256_file(path)] for path in files]
    return hashlib.sha256(json.dumps(listed).encode()).hexdigest()


def shard_texts(folder: Path, model: Path) -> Iterator[str]:
    """The documents of a shard as text again, for tokenizers that give back what they took.

    Raises `InputError` like `open_shard`, and if the text's tokens are not those of the shard.
    """
    shard, encoder = open_shard(folder, model), load_encoder(model)
    for start, end in pairwise(shard.starts.tolist()):
        ids = shard.ids[start:end]
        text = encoder.tokenizer.decode(ids[1:].tolist(), skip_special_tokens=False)
        if not np.array_equal(encoder.encode([text])[0], ids):
            raise InputError(
                f"{folder}: the tokenizer of {model} does not give back the text that it took. Give the text itself: "
                "train.jsonl[.gz] and test.jsonl[.gz]."
            )
        yield text


def documents_of(place: Path, model: Path | None) -> Iterator[str]:
    """The documents of text in any form: `read_documents`, or `shard_texts` of a token shard made for `model`.

    Raises `InputError` like these two, and for a shard without a model.
    """
    if not is_shard(place):
        return read_documents(place)
    if model is None:
        raise InputError(f"{place}: tokens, and no model here that could turn them into text. Give the text itself.")
    return shard_texts(place, model)


def _check_file(path: Path, size: int, digest: str) -> None:
    if not path.is_file():
        raise InputError(f"{path}: this file of the shard is missing. Prepare the text again.")
    if (found := path.stat().st_size) != size:
        raise InputError(
            f"{path}: {found:,} bytes, but {size:,} were written. It was changed or cut off after preparation; "
            "prepare the text again."
        )
    if size <= HASHED and sha256_file(path) != digest:
        raise InputError(
            f"{path}: its sha256 is not the one written down in {ABOUT}. It was changed after preparation; prepare the "
            "text again."
        )


def prepare_shard(source: Path, model: Path, cache: Path) -> TokenShard:
    """Tokenises text with a model folder's tokenizer, or finds it done.

    Args:
        source: text in any form that `flexo-data prepare` reads, or the folder of a token shard, which is opened and
            checked.
        model: the folder with `tokenizer.json` and `config.json`.
        cache: where shards are kept, in a folder named after the digests of file and tokenizer.

    Raises:
        InputError: the text is unreadable, or there is none; or the shard is not fit for the tokenizer or was changed.
    """
    if is_shard(source):
        return open_shard(source, model)
    require_text(source)
    encoder, template = load_encoder(model), find_template(model)
    name = f"{VERSION} {RULES} {text_digest(source)} {encoder.digest} {encoder.end_of_text} {template.digest}"
    key = hashlib.sha256(name.encode()).hexdigest()[:16]
    folder = cache / f"{source.name.partition('.')[0]}-{key}"
    keep(folder, lambda partial: _write(_documents(source, template), encoder, partial, str(source)))
    return open_shard(folder)


def _documents(source: Path, template: ChatTemplate) -> Iterator[Document]:
    """The documents of a place, after a word on files of it that are not read."""
    cut = cut_into_tasks(Source(str(source)))
    for line in named(cut.not_read):
        note(line)
    for pieces in cut.tasks:
        yield from read(Source(str(source)), pieces, template=template)


def _write(documents: Iterator[Document], encoder: Encoder, folder: Path, where: str) -> None:
    empty, writer = 0, ShardWriter(folder, encoder)
    try:
        with progress(f"tokenising {Path(where).name}", None) as advance:
            for batch in batches(documents, BATCH, lambda document: len(document.text)):
                full = [document for document in batch if document.text and not document.text.isspace()]
                empty += len(batch) - len(full)
                texts, talks = [document.text for document in full], [document.conversation for document in full]
                ids, lengths, answers = encode_documents(encoder, texts, talks)
                size = sum(len(text.encode()) for text in texts)
                writer.add(ids, lengths, size, answers, sum(talk is not None for talk in talks))
                advance(size)
        if not writer.documents:
            raise InputError(f"{where}: no document with text in it ({empty} without). Is it the right file?")
        writer.close(empty)
    finally:
        writer.discard()
