"""Where the text of a domain is: an owner's own, in any form that is read, sample corpora, or a hub source.

A corpus is a folder with `train` and `test`, `train.jsonl.gz` for example, or `train/` with files in it:

    for text in read_documents(find_split(Path("data/corpora/math"), "train")): ...
"""

from __future__ import annotations

import gzip
import hashlib
import json
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import astuple, dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

from flexmix.documents.conversations import ChatTemplate
from flexmix.documents.filters import rejected
from flexmix.documents.formats import FORMATS
from flexmix.documents.formats.unpacking import SUFFIXES as PACKED
from flexmix.documents.reading import cut_into_tasks, read, read_all
from flexmix.documents.source import HUB, MESSAGES, TEXT, Document, Source
from flexmix.documents.source.columns import written
from flexo.console import progress
from flexo.errors import InputError
from flexo.make_once import keep

SUFFIXES = frozenset((*(suffix for form in FORMATS for suffix in form.suffixes), *PACKED, ".zip"))
SHARD = "shard.json"  # in the folder of a token shard, see `flexmix.tokens.shard`
HELD_OUT = 20  # one document in this many is held out of a hub source


@dataclass(frozen=True)
class HubSource:
    """A dataset on the hub, or a local folder laid out like one, and the column that holds the text."""

    id: str
    subset: str | None = None
    split: str = "train"
    revision: str | None = None
    text: str = "text"
    documents: int | None = 20_000  # read at most this many
    where: dict[str, Any] = field(default_factory=dict)  # only documents whose columns hold these values

    @property
    def source(self) -> Source:
        """The whole of it, as `flexo-data prepare` reads it."""
        where = {name: value if isinstance(value, str) else written(value) for name, value in self.where.items()}
        return Source(HUB + self.id, self.text, self.subset, self.split, self.revision, where=where)


@dataclass(frozen=True)
class Corpus:
    """Where an owner's documents are, and a sentence that says so."""

    train: Path
    test: Path | None
    said: str


def find_split(folder: Path, split: str) -> Path:
    """The file or folder of a split (`train` or `test`) in a corpus folder, or the token shard of it in a prepared one.

    Raises `InputError` if there is none, or more than one.
    """
    found = splits_in(folder, split) if folder.is_dir() else []
    if len(found) == 1:
        return found[0]
    if not folder.is_dir():
        raise InputError(f"{folder}: no such folder. Expected a folder with train.jsonl[.gz] and test.jsonl[.gz].")
    held = ", ".join(sorted(path.name for path in folder.iterdir())[:6]) or "nothing"
    if found:
        names = " and ".join(path.name for path in found)
        raise InputError(f"{folder}: {names} in it. Which is the {split} text cannot be known: keep one of them.")
    raise InputError(f"{folder}: no {split}.jsonl or {split}.jsonl.gz in it, nor other {split} text (found {held}).")


def splits_in(folder: Path, split: str) -> list[Path]:
    """The files, folders or token shards of a split in a folder, by their names: one, if all is as it should be."""
    found = []
    for path in sorted(folder.iterdir()):
        name, *suffixes = path.name.lower().split(".")
        if name == split and (path.is_dir() if not suffixes else {f".{suffix}" for suffix in suffixes} <= SUFFIXES):
            found.append(path)
    return found


def training_text(place: Path) -> Path:
    """What of an owner's file or folder is read for training: the `train` in a folder, if there is one, or all."""
    return find_split(place, "train") if place.is_dir() and splits_in(place, "train") else place


def find_corpus(
    name: str, corpora: Path, train: Path | None = None, test: Path | None = None, hub: HubSource | None = None
) -> Corpus:
    """Finds the text of a domain: the files given, else the sample corpora if they were built, else the hub source.

    Args:
        name: the domain.
        corpora: the folder that `flexo-data sample` fills, one folder a domain. Hub documents are kept below it, one
            folder for each `HubSource`.
        train, test: the owner's own text, in any form that `flexo-data prepare` reads; `test` alone may be left out.
            `train` may be a folder that holds both, made by `flexo-data prepare` or with `train` and `test` in it, or
            `hub:ID`.
        hub: what to read when nothing is here.

    Raises:
        InputError: there is no text to be had; says what was tried.
    """
    if test is not None and train is None:
        raise InputError(f"domain {name!r}: domain.test={test} without domain.train. Give both, or neither.")
    if train is not None and str(train).startswith(HUB) and test is None:
        return _kept(name, corpora, HubSource(str(train).removeprefix(HUB), documents=None))
    if train is not None:
        both = train.is_dir() and all(splits_in(train, split) for split in ("train", "test"))
        if both or (train / "train" / SHARD).is_file():
            return _of_folder(name, train, test)
        for path in filter(None, (train, test)):
            require_text(path)
        return Corpus(train, test, f"own files: {train}" + (f", held out: {test}" if test else ", nothing held out"))
    sample = corpora / name
    if sample.is_dir():
        return Corpus(find_split(sample, "train"), find_split(sample, "test"), f"sample corpora: {sample}")
    if hub is None:
        raise InputError(
            f"domain {name!r}: no text. {sample} does not exist and no hub source is configured. Give your own files "
            "with domain.train=shard.jsonl.gz domain.test=held.jsonl.gz, or build the samples: flexo-data sample"
        )
    return _kept(name, corpora, hub)


def _kept(name: str, corpora: Path, hub: HubSource) -> Corpus:
    """The documents of a hub source, read once and kept."""
    kept = kept_folder(name, corpora, hub)
    keep(kept, lambda folder: _write_hub_documents(hub, folder, name, corpora / name))
    return Corpus(find_split(kept, "train"), find_split(kept, "test"), f"hub: {hub.id}, kept in {kept}")


def kept_folder(name: str, corpora: Path, hub: HubSource) -> Path:
    """Where the documents of a hub source are kept, or would be."""
    return corpora / f"{name}-hub-{hashlib.sha256(repr(astuple(hub)).encode()).hexdigest()[:8]}"


def _of_folder(name: str, folder: Path, test: Path | None) -> Corpus:
    """The text of a folder with `train` and perhaps `test` in it."""
    train = find_split(folder, "train")
    prepared = (train / SHARD).is_file()
    if test is not None:
        what = "a prepared folder, which holds" if prepared else "a folder with train and test in it, and so holds"
        raise InputError(
            f"domain {name!r}: domain.train={folder} is {what} its own held-out text; domain.test={test} cannot be "
            "given beside it."
        )
    held = find_split(folder, "test") if splits_in(folder, "test") else None
    return Corpus(train, held, f"prepared text: {folder}" if prepared else f"own files: {folder}")


def require_text(place: Path) -> None:
    """Raises `InputError` unless there is something at a place."""
    if not place.exists():
        raise InputError(
            f"{place}: no such file or folder, expected text: a file in any form that flexo-data prepare reads, a "
            "folder of such files, or a folder that it has made."
        )


def read_documents(place: Path, text: str = TEXT, template: ChatTemplate | None = None) -> Iterator[str]:
    """The documents of a file or folder, in order, in constant memory. Empty documents are yielded too.

    `template` writes conversations out. Raises `InputError` with file and line for what is damaged or no text.
    """
    require_text(place)
    for document in read_all(Source(str(place), text), template or ChatTemplate(None)):
        yield document.text


def held_out(text: str) -> bool:
    """Whether a document belongs to the test split, decided by its hash alone: one in `HELD_OUT`."""
    return _fraction(text) < 1 / HELD_OUT


def copy_sample(
    source: Path, target: Path, size: int, read: Callable[[Path], Iterator[str]] | None = None
) -> dict[str, int]:
    """Writes about `size` bytes of the documents of `source`, chosen by their hash, as `.jsonl.gz`.

    `read` gives its documents, twice; None reads any text.

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
        for document in islice(_hub_documents(hub, name, sample), hub.documents):
            split = "test" if held_out(document.text) else "train"
            talk = document.conversation
            row: dict[str, Any] = {MESSAGES: talk.messages} if talk else {TEXT: document.text}
            files[split].write(json.dumps(row | {"source": hub.id}).encode() + b"\n")
            counts[split] += 1
            advance(1)
    if min(counts.values()) < 2:
        raise InputError(
            f"{hub.id}: {counts['train']} documents to train on and {counts['test']} held out, expected two of each at "
            f"least. One in {HELD_OUT} is held out: name a source with more text, or give your own files with "
            "domain.train=FILE domain.test=FILE."
        )


def _hub_documents(hub: HubSource, name: str, sample: Path) -> Iterator[Document]:
    from flexmix.documents.hf_datasets import UnreachableError

    source = hub.source
    try:
        for pieces in cut_into_tasks(source).tasks:
            for document in read(source, pieces):
                if document.text.strip() and rejected(source, document.text, document.columns) is None:
                    yield document
    except UnreachableError as error:
        raise InputError(
            f"domain {name!r}: {sample} was not built and the hub source {error}. Give your own files with "
            "domain.train=FILE domain.test=FILE, build the sample corpora with flexo-data sample, or go online."
        ) from error
