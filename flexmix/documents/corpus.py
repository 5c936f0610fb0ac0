"""Text of data owners, document by document, from JSON lines or from a hub.

A corpus is a folder with `train` and `test` as `.jsonl` or `.jsonl.gz`, one JSON object with a `text` a line:

    for text in read_documents(find_split(Path("data/corpora/math"), "train")): ...
"""

from __future__ import annotations

import gzip
import hashlib
import json
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import astuple, dataclass, field
from functools import partial
from itertools import islice
from pathlib import Path

from flexmix.documents.filters import rejected
from flexmix.documents.json_lines import read_rows, text_of
from flexmix.documents.reading import plan
from flexmix.documents.reading import read as read_source
from flexmix.documents.source import HUB, Source
from flexo.console import progress
from flexo.errors import InputError
from flexo.make_once import keep

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
    where: dict[str, str] = field(default_factory=dict)  # only documents whose columns hold these values

    @property
    def source(self) -> Source:
        """The whole of it, as `flexo-data prepare` reads it."""
        return Source(HUB + self.id, self.text, self.subset, self.split, self.revision, where=self.where)


@dataclass(frozen=True)
class Corpus:
    """Where an owner's documents are, and a sentence that says so."""

    train: Path
    test: Path | None
    said: str


def find_split(folder: Path, split: str) -> Path:
    """The file of a split (`train` or `test`) in a corpus folder, or the token shard of it in a prepared one.

    Raises `InputError` if there is none.
    """
    if (folder / split / "shard.json").is_file():
        return folder / split
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
        train, test: the owner's own files; `test` alone may be left out. `train` may be a folder made by `flexo-data
            prepare`, which holds both.
        hub: what to read when nothing is here.

    Raises:
        InputError: there is no text to be had; says what was tried.
    """
    if test is not None and train is None:
        raise InputError(f"domain {name!r}: domain.test={test} without domain.train. Give both, or neither.")
    if train is not None:
        if (train / "train" / "shard.json").is_file():
            return _prepared(name, train, test)
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
    kept = kept_folder(name, corpora, hub)
    keep(kept, lambda folder: _write_hub_documents(hub, folder, name, sample))
    return Corpus(find_split(kept, "train"), find_split(kept, "test"), f"hub: {hub.id}, kept in {kept}")


def kept_folder(name: str, corpora: Path, hub: HubSource) -> Path:
    """Where the documents of a hub source are kept, or would be."""
    return corpora / f"{name}-hub-{hashlib.sha256(repr(astuple(hub)).encode()).hexdigest()[:8]}"


def _prepared(name: str, folder: Path, test: Path | None) -> Corpus:
    if test is not None:
        raise InputError(
            f"domain {name!r}: domain.train={folder} is a prepared folder, which holds its own held-out text; "
            f"domain.test={test} cannot be given beside it."
        )
    held = folder / "test"
    return Corpus(folder / "train", held if held.is_dir() else None, f"prepared text: {folder}")


def require_file(path: Path) -> None:
    """Raises `InputError` unless `path` is a file."""
    if not path.is_file():
        found = "a folder" if path.is_dir() else "no such file"
        raise InputError(
            f"{path}: {found}, expected a .jsonl or .jsonl.gz file, or a folder made by flexo-data prepare."
        )


def read_documents(path: Path, text: str = "text") -> Iterator[str]:
    """The documents of a `.jsonl` or `.jsonl.gz` file, in order, in constant memory. Empty documents are yielded too.

    Raises `InputError` with file and line for damaged gzip, text that is not UTF-8, lines that are not JSON objects,
    and a missing or non-text column.
    """
    require_file(path)
    for number, row in read_rows(path):
        yield text_of(row, text, partial("{}: line {}".format, path, number))


def held_out(text: str) -> bool:
    """Whether a document belongs to the test split, decided by its hash alone: one in `HELD_OUT`."""
    return _fraction(text) < 1 / HELD_OUT


def copy_sample(
    source: Path, target: Path, size: int, read: Callable[[Path], Iterator[str]] | None = None
) -> dict[str, int]:
    """Writes about `size` bytes of the documents of `source`, chosen by their hash, as `.jsonl.gz`.

    `read` gives its documents, twice; None reads a corpus file.

    Returns:
        Counts of `documents` and text `bytes` written.
    """
    read = read or read_documents
    total = sum(len(text.encode()) for text in read(source))
    share = min(1.0, size / max(1, total))
    counts = {"documents": 0, "bytes": 0}
    with gzip.GzipFile(target, "wb", mtime=0) as file:
        for text in read(source):
            if text.strip() and _fraction(text) < share:
                file.write(json.dumps({"text": text}, ensure_ascii=False).encode() + b"\n")
                counts["documents"] += 1
                counts["bytes"] += len(text.encode())
    return counts


def fraction(digest: bytes) -> float:
    """A number in [0, 1) from the sha256 of a document's UTF-8 bytes; it decides about the split."""
    return int.from_bytes(digest[:8], "big") / 2**64


def _fraction(text: str) -> float:
    return fraction(hashlib.sha256(text.encode()).digest())


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
    from flexmix.documents.hf_datasets import UnreachableError

    source = hub.source
    try:
        for pieces in plan(source):
            for text, row in read_source(source, pieces):
                if text.strip() and rejected(source, text, row) is None:
                    yield text
    except UnreachableError as error:
        raise InputError(
            f"domain {name!r}: {sample} was not built and the hub source {error}. Give your own files with "
            "domain.train=FILE domain.test=FILE, build the sample corpora with flexo-data sample, or go online."
        ) from error
