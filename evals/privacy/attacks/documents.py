"""The documents that attacks are tried on: those that were trained on, and others of the same source."""

from __future__ import annotations

import hashlib
import heapq
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from evals.scoring.held_out import tokenised
from evals.scoring.sliding_windows import TokenisedText
from flexmix.canaries.manifest import Manifest
from flexmix.documents.corpus import find_split
from flexmix.tokens.encoder import load_tokenizer
from flexmix.tokens.shard import documents_of
from flexo.errors import InputError

LEAST = 20  # documents of each kind, below which no figure means anything


@dataclass(frozen=True)
class Sample:
    """Different documents, and how often each stands in its text."""

    text: TokenisedText
    copies: tuple[int, ...]

    @property
    def texts(self) -> list[str]:
        assert self.text.texts is not None, "a sample holds its documents"
        return self.text.texts


@dataclass(frozen=True)
class Texts:
    """Where an owner's documents are, in any form that `flexo-data prepare` reads, or as token shards."""

    members: Path | None = None  # that were trained on
    non_members: Path | None = None  # of the same source, that were not
    canaries: Path | None = None  # the manifest of what was planted
    documents: int = 1000  # to take of each, at most: those whose hashes come first

    @classmethod
    def of(cls, folder: Path, **more: Any) -> Texts:
        """Those of a folder with `train` and `test` in it, such as `flexo-data prepare` makes: it splits by hash."""
        return cls(find_split(folder, "train"), find_split(folder, "test"), **more)

    def read(self, model: Path, seed: int, planted: Manifest | None) -> tuple[Sample | None, Sample | None]:
        """Members and non-members; a document that is in both is a member, and canaries are neither.

        Args:
            model: a folder with the tokenizer.
            seed: other seeds take other documents.
            planted: the canaries, if there are.

        Raises:
            InputError: members without non-members, or too few documents.
        """
        if (self.members is None) != (self.non_members is None):
            raise InputError(
                "--members and --non-members go together: documents that were trained on, and others of their source."
            )
        if self.members is None or self.non_members is None:
            return None, None
        seen = {_digest(text) for text in _documents(self.members, model)}
        canaries = {_digest(canary.text) for canary in planted.canaries} if planted else set()
        found = []
        for place, left_out in ((self.members, canaries), (self.non_members, canaries | seen)):
            drawn = _draw(_documents(place, model), self.documents, seed, left_out)
            if len(drawn) < LEAST:
                raise InputError(
                    f"{place}: {len(drawn)} different documents with text that the other one does not have, expected "
                    f"{LEAST} or more."
                )
            found.append(Sample(tokenised_by(model, [text for text, _ in drawn]), tuple(n for _, n in drawn)))
        return found[0], found[1]


def tokenised_by(model: Path, texts: list[str]) -> TokenisedText:
    """Documents as tokens of a model folder's tokenizer."""
    tokenizer, end = load_tokenizer(model)
    return tokenised(texts, tokenizer, end, "")


def groups(copies_N: npt.NDArray[np.int64]) -> dict[str, npt.NDArray[np.bool_]]:
    """All, and those that stand in the text equally often, if that differs: the places [N] of each group."""
    found = {"all": np.ones(len(copies_N), bool)}
    if len(times := np.unique(copies_N)) > 1:
        found |= {f"{n} in the text": copies_N == n for n in times}
    return found


def _documents(place: Path, model: Path) -> Iterator[str]:
    return (text for text in documents_of(place, model) if text and not text.isspace())


def _draw(documents: Iterator[str], count: int, seed: int, left_out: Collection[bytes]) -> list[tuple[str, int]]:
    """So many different documents, those whose keyed hashes come first, each with its number of copies."""
    kept: dict[bytes, tuple[str, int]] = {}
    latest: list[tuple[int, bytes]] = []  # a heap of the kept ones, that of the last hash first
    for text in documents:
        digest = _digest(text)
        if digest in kept:
            kept[digest] = (text, kept[digest][1] + 1)
        elif digest not in left_out:
            key = hashlib.sha256(f"{seed} ".encode() + digest).digest()
            heapq.heappush(latest, (-int.from_bytes(key, "big"), digest))
            kept[digest] = (text, 1)
            if len(kept) > count:
                del kept[heapq.heappop(latest)[1]]  # the threshold only falls, so a dropped one never comes back
    return list(kept.values())


def _digest(text: str) -> bytes:
    return hashlib.sha256(text.encode()).digest()
