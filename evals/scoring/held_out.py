"""The text that models are measured on: held-out documents of each domain, found by the domain's name.

split   what is read
test    test.jsonl[.gz], or test/: a folder of files, or the token shard of `flexo-data prepare`
train   train.jsonl[.gz]
valid   valid.jsonl[.gz]; without one, half of the test documents, chosen by their hash
final   the test documents that `valid` leaves: choose settings on `valid`, report them on `final`
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

from tokenizers import Tokenizer

from evals.scoring.sliding_windows import TokenisedText
from flexmix.documents.corpus import find_split, kept_folder, splits_in
from flexmix.documents.flexmix_sets import SETS, load_set
from flexmix.tokens.encoder import load_tokenizer
from flexmix.tokens.shard import documents_of
from flexo.errors import InputError

PUBLIC = "public"  # the domain of the text that all owners share

Split = Literal["test", "train", "valid", "final"]
KEPT = "-hub-"


@dataclass(frozen=True)
class Reading:
    """Which text is read from a folder of corpora."""

    data: Path  # one corpus folder a domain, as `flexo-data sample` makes it
    domains: Sequence[str] | None = None  # None: those that the models have experts for, or else all that are there
    split: str = "test"
    max_bytes: int = 200_000  # a domain: documents are read whole until there are as many bytes

    def documents(self, model: Path | None) -> dict[str, list[str]]:
        """Domain -> its documents; token shards are read if they were made with the tokenizer of the folder `model`."""
        files = find_domains(self.data, self.domains, [], self.split)
        return {domain: first_documents(path, model, self.max_bytes, self.split) for domain, path in files.items()}

    def texts(self, model: Path, experts: Sequence[str] = ()) -> dict[str, TokenisedText]:
        """Domain -> its documents, tokenised.

        Args:
            model: a model folder; its tokenizer is used.
            experts: the domains that the models have experts for.
        """
        files = find_domains(self.data, self.domains, experts, self.split)
        return read_texts(files, model, self.max_bytes, self.split)


def find_domains(
    data: Path, wanted: Sequence[str] | None, known: Sequence[str], split: str = "test"
) -> dict[str, Path]:
    """The file of each domain in `data` that holds a split.

    A domain is a folder of its name, or one that a training script has filled from the hub and kept.

    Args:
        data: a folder with one corpus folder a domain, as `flexo-data sample` makes it.
        wanted: domains to read; None reads those of `known` that are there, or all domains if none of them is.
        known: the domains that the model has experts for; empty for a plain model.
        split: see the table at the head of this module.

    Raises:
        InputError: there is no such split, folder or domain.
    """
    if split not in get_args(Split):
        raise InputError(f"--split {split}: expected one of {', '.join(get_args(Split))}.")
    if not data.is_dir():
        raise InputError(f"{data}: no such folder. Expected one folder a domain, with test.jsonl[.gz] in each.")
    name = "train" if split == "train" else "test"
    visible = [path for path in data.iterdir() if not path.name.startswith(".")]  # others are unfinished
    whole = [path for path in visible if path.is_dir() and splits_in(path, name)]
    there = sorted({path.name.partition(KEPT)[0] for path in whole})
    if wanted is None:
        wanted = [domain for domain in known if domain in there] or there
    if not wanted:
        raise InputError(f"{data}: no domain in it. Expected folders with {name}.jsonl[.gz], such as {data}/public.")
    if absent := [domain for domain in wanted if domain not in there]:
        raise InputError(f"{data}: no domain {absent[0]!r} in it. There are {', '.join(there) or 'none'}.")
    folders = {domain: _folder(data, domain, [path for path in whole if path.name != domain]) for domain in wanted}
    own = {
        domain: path for domain, folder in folders.items() for path in splits_in(folder, "valid") if split == "valid"
    }
    return {domain: own.get(domain) or find_split(folder, name) for domain, folder in folders.items()}


def _folder(data: Path, domain: str, others: Sequence[Path]) -> Path:
    """A domain's folder: that of its name, else the copy of its configured hub data set, else its only copy."""
    if (data / domain).is_dir():
        return data / domain
    kept = sorted(path for path in others if path.name.partition(KEPT)[0] == domain)
    if domain in SETS and (configured := kept_folder(domain, data, load_set(domain).hub)) in kept:
        return configured
    if len(kept) > 1:
        raise InputError(
            f"{data}: text of {domain!r} was read from the hub with {len(kept)} settings: "
            f"{', '.join(path.name for path in kept)}. Rename the one to use to {domain}."
        )
    return kept[0]


def read_texts(
    files: Mapping[str, Path], folder: Path, max_bytes: int, split: str = "test"
) -> dict[str, TokenisedText]:
    """The documents of `first_documents` for each file, tokenised by the tokenizer of a model folder."""
    tokenizer, end = load_tokenizer(folder)
    documents = {domain: first_documents(path, folder, max_bytes, split) for domain, path in files.items()}
    return {domain: tokenised(texts, tokenizer, end, domain) for domain, texts in documents.items()}


def first_documents(path: Path, model: Path | None, max_bytes: int, split: str = "test") -> list[str]:
    """The first documents of a text, blank ones left out, until they have `max_bytes` bytes; none is cut.

    Raises:
        InputError: there is no text, or it is a token shard that was not made with the tokenizer of `model`.
    """
    texts: list[str] = []
    nbytes = 0
    for text in _of_split(path, model, split):
        if nbytes >= max_bytes:
            break
        if text.strip():
            texts.append(text)
            nbytes += len(text.encode())
    if not texts:
        raise InputError(f"{path}: no text in it{'' if split in ('test', 'train') else f' for --split {split}'}.")
    return texts


def documents_digest(texts: Iterable[str]) -> str:
    """A sha256 over documents in their order; it does not depend on a tokenizer."""
    digest = hashlib.sha256()
    for text in texts:
        data = text.encode()
        digest.update(len(data).to_bytes(8, "little") + data)
    return digest.hexdigest()


def tokenised(texts: list[str], tokenizer: Tokenizer, end: int, domain: str) -> TokenisedText:
    """Documents of one domain as tokens, together with their text."""
    encoded = tokenizer.encode_batch_fast(texts, add_special_tokens=False)
    nbytes = sum(len(text.encode()) for text in texts)
    return TokenisedText([encoding.ids for encoding in encoded], nbytes, end, (domain,), texts=texts)


def _of_split(path: Path, model: Path | None, split: str) -> Iterator[str]:
    halved = split in ("valid", "final") and path.name.partition(".")[0] == "test"
    if halved and split == "final" and splits_in(path.parent, "valid"):
        halved = False
    for text in documents_of(path, model):
        if not halved or (hashlib.sha256(text.encode()).digest()[18] % 2 == 0) == (split == "valid"):
            yield text
