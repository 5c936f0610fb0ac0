"""Text of data owners, document by document, from JSON lines or from a hub.

A corpus is a folder with `train` and `test` as `.jsonl` or `.jsonl.gz`, one JSON object with a `text` a line:

    for text in read_documents(find_split(Path("data/corpora/math"), "train")): ...
"""

from __future__ import annotations

import gzip
import hashlib
import json
import os
import zlib
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import astuple, dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from flexmix.kept import keep
from merge.console import progress
from merge.errors import InputError

SUFFIXES = (".jsonl", ".jsonl.gz")
HELD_OUT = 20  # one document in this many is held out of a hub source


@dataclass(frozen=True)
class HubSource:
    """A dataset on the hub, or a local folder laid out like one, and the column that holds the text."""

    id: str
    subset: str | None = None
    split: str = "train"
    revision: str | None = None
    text: str = "text"
    documents: int = 20_000  # read at most this many


@dataclass(frozen=True)
class Corpus:
    """Where an owner's documents are, and a sentence that says so."""

    train: Path
    test: Path | None
    said: str


def find_split(folder: Path, split: str) -> Path:
    """The file of a split (`train` or `test`) in a corpus folder; raises `InputError` if there is none."""
    for suffix in SUFFIXES:
        if (path := folder / f"{split}{suffix}").exists():
            return path
    if not folder.is_dir():
        raise InputError(f"{folder}: no such folder. Expected a folder with train.jsonl[.gz] and test.jsonl[.gz].")
    held = ", ".join(sorted(path.name for path in folder.iterdir())[:6]) or "nothing"
    raise InputError(f"{folder}: no {split}.jsonl or {split}.jsonl.gz in it (found {held}).")


def find_corpus(
    name: str, corpora: Path, train: Path | None = None, test: Path | None = None, hub: HubSource | None = None
) -> Corpus:
    """Finds the text of a domain: the files given, else the sample corpora if they were built, else the hub source.

    Args:
        name: the domain.
        corpora: the folder that `flexo-data sample` fills, one folder a domain. Hub documents are kept below it, one
            folder for each `HubSource`.
        train, test: the owner's own files; `test` alone may be left out.
        hub: what to read when nothing is here.

    Raises:
        InputError: there is no text to be had; says what was tried.
    """
    if test is not None and train is None:
        raise InputError(f"domain {name!r}: domain.test={test} without domain.train. Give both, or neither.")
    if train is not None:
        for path in filter(None, (train, test)):
            require_file(path)
        return Corpus(train, test, f"own files: {train}" + (f", held out: {test}" if test else ", nothing held out"))
    sample = corpora / name
    if sample.is_dir():
        return Corpus(find_split(sample, "train"), find_split(sample, "test"), f"sample corpora: {sample}")
    if hub is None:
        raise InputError(
            f"domain {name!r}: no text. {sample} does not exist and no hub source is configured. Give your own files "
            "with domain.train=shard.jsonl.gz domain.test=held.jsonl.gz, or build the samples: flexo-data sample"
        )
    kept = corpora / f"{name}-hub-{hashlib.sha256(repr(astuple(hub)).encode()).hexdigest()[:8]}"
    keep(kept, lambda folder: _write_hub_documents(hub, folder, name, sample))
    return Corpus(find_split(kept, "train"), find_split(kept, "test"), f"hub: {hub.id}, kept in {kept}")


def require_file(path: Path) -> None:
    """Raises `InputError` unless `path` is a file."""
    if not path.is_file():
        found = "a folder" if path.is_dir() else "no such file"
        raise InputError(f"{path}: {found}, expected a .jsonl or .jsonl.gz file.")


def read_documents(path: Path, text: str = "text") -> Iterator[str]:
    """The documents of a `.jsonl` or `.jsonl.gz` file, in order, in constant memory. Empty documents are yielded too.

    Raises `InputError` with file and line for damaged gzip, text that is not UTF-8, lines that are not JSON objects,
    and a missing or non-text column.
    """
    require_file(path)
    number = 0
    try:
        opener = gzip.open if path.name.endswith(".gz") else open
        with opener(path, "rb") as lines:
            for number, line in enumerate(lines, 1):
                if line.strip():
                    yield _text_of(line, text, f"{path}: line {number}")
    except (gzip.BadGzipFile, zlib.error, EOFError) as error:
        raise InputError(f"{path}: damaged gzip after line {number} ({error}). Copy the file again.") from None


def held_out(text: str) -> bool:
    """Whether a document belongs to the test split, decided by its hash alone: one in `HELD_OUT`."""
    return _fraction(text) < 1 / HELD_OUT


def copy_sample(source: Path, target: Path, size: int) -> dict[str, int]:
    """Writes about `size` bytes of a corpus file's documents, chosen by their hash, as `.jsonl.gz`.

    Returns:
        Counts of `documents` and text `bytes` written.
    """
    total = sum(len(text.encode()) for text in read_documents(source))
    share = min(1.0, size / max(1, total))
    counts = {"documents": 0, "bytes": 0}
    with gzip.GzipFile(target, "wb", mtime=0) as file:
        for text in read_documents(source):
            if text.strip() and _fraction(text) < share:
                file.write(json.dumps({"text": text}, ensure_ascii=False).encode() + b"\n")
                counts["documents"] += 1
                counts["bytes"] += len(text.encode())
    return counts


def _fraction(text: str) -> float:
    """A number in [0, 1) that depends on the text alone."""
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") / 2**64


def _text_of(line: bytes, column: str, where: str) -> str:
    try:
        document = json.loads(line.rstrip().decode("utf-8"))
    except UnicodeDecodeError as error:
        raise InputError(
            f"{where}: not UTF-8 (byte {error.object[error.start]:#04x} at column {error.start + 1}). "
            "Convert the file first, for example with iconv -t utf-8."
        ) from None
    except (ValueError, RecursionError) as error:
        why = str(error).replace("line 1 ", "")  # it has seen one line only
        raise InputError(f'{where}: not JSON ({why}). Expected one {{"text": "..."}} a line.') from None
    if not isinstance(document, dict) or not isinstance(text := document.get(column), str):
        raise InputError(f"{where}: {_no_text(document, column)}")
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        raise InputError(f"{where}: the text holds half of a surrogate pair, which is no character.") from None
    return text


def _no_text(document: object, column: str) -> str:
    if not isinstance(document, dict):
        return f"{type(document).__name__}, expected an object with the column {column!r}."
    if column not in document:
        return f"no column {column!r} (found {', '.join(map(repr, sorted(document)[:6])) or 'none'})."
    return f"the column {column!r} holds {type(document[column]).__name__}, expected text."


def _write_hub_documents(hub: HubSource, folder: Path, name: str, sample: Path) -> None:
    """Streams the documents of a hub source into a corpus folder."""
    counts = {"train": 0, "test": 0}
    with progress(f"reading {hub.id}", hub.documents, "documents") as advance, ExitStack() as stack:
        files = {split: stack.enter_context(gzip.open(folder / f"{split}.jsonl.gz", "wb")) for split in counts}
        for text in islice(_hub_texts(hub, name, sample), hub.documents):
            split = "test" if held_out(text) else "train"
            files[split].write(json.dumps({"text": text, "source": hub.id}).encode() + b"\n")
            counts[split] += 1
            advance(1)
    if min(counts.values()) < 2:
        raise InputError(
            f"{hub.id}: {counts['train']} documents to train on and {counts['test']} held out, expected two of each at "
            f"least. One in {HELD_OUT} is held out: name a source with more text, or give your own files with "
            "domain.train=FILE domain.test=FILE."
        )


def _hub_texts(hub: HubSource, name: str, sample: Path) -> Iterator[str]:
    from datasets import load_dataset

    unreachable = (
        f"domain {name!r}: {sample} was not built and the hub source {hub.id} cannot be read{{}}. Give your own files "
        "with domain.train=FILE domain.test=FILE, build the sample corpora with flexo-data sample, or go online."
    )
    if os.environ.get("HF_HUB_OFFLINE") == "1" and not Path(hub.id).is_dir():
        raise InputError(unreachable.format(" (HF_HUB_OFFLINE is 1)"))
    try:
        rows: Any = load_dataset(hub.id, hub.subset, split=hub.split, revision=hub.revision, streaming=True)
        for row in rows:
            if hub.text not in row or not isinstance(text := row[hub.text], str | None):
                raise InputError(f"{hub.id}: {_no_text(row, hub.text)}")
            if text and text.strip():
                yield text
    except InputError:
        raise
    except Exception as error:  # the hub client fails in many ways: no network, gated, gone, another layout
        raise InputError(unreachable.format(f" ({type(error).__name__}: {str(error)[:160]})")) from error
