"""Proxies: public documents that look most like a private domain, chosen at the owner's site. Extra `proxies`.

A linear classifier of hashed words and word pairs learns to tell own from public documents; the public ones that it
takes for own are chosen. Documents are divided into two folds by their hash, and each is scored by the classifier that
learnt from the other fold: held-out figures come from all documents, and no public document is held against itself.

The chosen documents are public, but which ones were chosen is a function of private text. How much of it that gives
away is measured by choosing again: from one half of the private documents and from the other, with single documents
left out, and with the same documents in another order. These are measurements on this text, not a guarantee: nothing
here is differentially private.

    report = choose_proxies(own, public, output, share=0.05)
"""

from __future__ import annotations

import gzip
import hashlib
import json
import math
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from flexmix.documents.corpus import read_documents, training_text
from flexo.atomic_files import new_file
from flexo.console import progress
from flexo.errors import InputError

SHARE = 0.05  # of the public documents, unless told otherwise
LEAST = 40  # documents of each kind, below which held-out figures mean nothing
MOST = 10_000  # documents of each kind to learn from, or a few more
CHARACTERS = 4000  # read of each document
FEATURES = 1 << 18
FOLDS = 2
EPOCHS = 8
LEFT_OUT = 5  # single documents left out, one at a time
BATCH = 256
SCORES = 1001  # a score has three decimals

Floats = npt.NDArray[np.floating[Any]]
Integers = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Report:
    """What was chosen, how well the domain can be told from public text, and how much the choice depends on whom."""

    own_documents: int  # with text
    public_documents: int
    learnt_from: tuple[int, int]  # own and public documents
    accuracy: float  # held out, both kinds weighing the same
    auc: float  # held out: chance that an own document scores above a public one
    chosen: int
    lowest_score: float
    halves_overlap: float  # share of documents chosen from one half of the private text and from the other alike
    chance_overlap: float  # the same for two blind choices
    one_left_out: tuple[float, int]  # chosen documents that change when one private document is left out: mean, most
    reordered: int  # ... when nothing is left out, but the order in which the classifier reads
    bits_at_most: float  # that the choice and the scores can carry at all

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def choose_proxies(
    own: Path | str,
    public: Path | str,
    output: Path | str,
    *,
    share: float | None = None,
    count: int | None = None,
    seed: int = 0,
    replace: bool = False,
) -> Report:
    """Writes the public documents that look most like own ones to `output`, `.jsonl.gz`, in their order in `public`.

    A line is `{"text": ..., "score": ...}`; the score is how likely the classifier takes the document for an own one if
    there were as many of both, to three decimals. Memory: up to
    0.8 GB for what is learnt from, and 40 bytes a public document.

    Args:
        own, public: text in any form that `flexo-data prepare` reads, or a folder with `train` in it.
        output: the file to make.
        share, count: how many to choose, of the public documents with text; one of them at most, by default 5 in 100.
        seed: of the order in which the classifier reads, and of which documents are left out.
        replace: replace `output` if it exists.

    Raises:
        InputError: the extra is missing, files are unreadable or too small, or there is nothing to choose.
    """
    if share is not None and count is not None:
        raise InputError("both --share and --count: give one of them.")
    require_extra()
    own, public = (training_text(Path(place)) for place in (own, public))
    with new_file(Path(output), replace) as partial:
        own_texts, own_documents = _sample(own)
        public_texts, public_documents = _sample(public)
        chosen = count if count is not None else round((SHARE if share is None else share) * public_documents)
        if not 0 < chosen < public_documents:
            raise InputError(
                f"{public}: {chosen} of {public_documents} documents to choose. Give a --share or --count that leaves "
                "some out and takes at least one."
            )
        choices = _Choices(own_texts, public_texts, seed)
        accuracy, auc = choices.held_out()
        score_MP = choices.score(public, public_documents)
        picks = [_top(score_P, chosen) for score_P in score_MP]
        lowest = _write(public, picks[0], score_MP[0], partial)
    picked, first_half, second_half, reordered, *without = picks
    changed = [chosen - _shared(picked, other) for other in without]
    return Report(
        own_documents,
        public_documents,
        (len(own_texts), len(public_texts)),
        accuracy,
        auc,
        chosen,
        lowest,
        _shared(first_half, second_half) / chosen,
        chosen / public_documents,
        (sum(changed) / len(changed), max(changed)),
        chosen - _shared(picked, reordered),
        _log2_choices(public_documents, chosen) + chosen * math.log2(SCORES),
    )


class _Choices:
    """The classifiers of all choices: from all private text, each half, reordered, and with one document left out.

    A choice is a set of own documents, kept as a mask, and a seed; it has one classifier a fold. M choices, P public
    documents.
    """

    def __init__(self, own: list[str], public: list[str], seed: int) -> None:
        self.vectorizer = new_vectorizer()
        texts = own + public
        self.x = self.vectorizer.transform(texts)
        self.is_own = np.arange(len(texts)) < len(own)
        self.fold = np.array([fold_of(text) for text in texts])
        everyone = np.ones(len(texts), dtype=bool)
        half = np.array([half_of(text) for text in texts])
        left_out = np.random.Generator(np.random.PCG64(seed)).choice(len(own), LEFT_OUT, replace=False)
        self.masks = [everyone, ~self.is_own | (half == 0), ~self.is_own | (half == 1), everyone]
        self.masks += [np.arange(len(texts)) != out for out in left_out]
        seeds = [seed, seed, seed, seed + 1, *[seed] * LEFT_OUT]
        with progress("learning to tell own from public", FOLDS * len(seeds), "classifiers") as advance:
            self.weights, self.biases = [], []
            for fold in range(FOLDS):
                models = [
                    self._fit(mask & (self.fold != fold), order, advance)
                    for mask, order in zip(self.masks, seeds, strict=True)
                ]
                self.weights.append(np.stack([weight for weight, _ in models], axis=1))
                self.biases.append(np.array([bias for _, bias in models]))

    def held_out(self) -> tuple[float, float]:
        """Balanced accuracy and area under the curve, every document scored by the fold that has not seen it."""
        from sklearn.metrics import balanced_accuracy_score, roc_auc_score

        margin = np.empty(len(self.fold))
        for fold in range(FOLDS):
            mine = self.fold == fold
            margin[mine] = self.x[mine] @ self.weights[fold][:, 0] + self.biases[fold][0]
        return float(balanced_accuracy_score(self.is_own, margin > 0)), float(roc_auc_score(self.is_own, margin))

    def score(self, public: Path, documents: int) -> Floats:
        """The margin of every public document under every choice, [M, P]."""
        score_MP = np.empty((len(self.masks), documents), dtype=np.float32)
        at = 0
        with progress("scoring public documents", documents, "documents") as advance:
            texts = _with_text(public)
            while batch := list(islice(texts, BATCH)):
                x = self.vectorizer.transform(batch)
                fold = np.array([fold_of(text) for text in batch])
                for number in range(FOLDS):
                    mine = fold == number
                    margin = x[mine] @ self.weights[number] + self.biases[number]
                    score_MP[:, at + mine.nonzero()[0]] = margin.T
                at += len(batch)
                advance(len(batch))
        assert at == documents, f"{public} changed while it was read"
        return score_MP

    def _fit(self, mask: npt.NDArray[np.bool_], seed: int, advance: Any) -> tuple[Floats, float]:
        model = new_classifier(seed)
        model.fit(self.x[mask], self.is_own[mask])
        advance(1)
        return model.coef_[0], float(model.intercept_[0])


def new_vectorizer() -> Any:
    """Documents as counts of hashed words and word pairs."""
    from sklearn.feature_extraction.text import HashingVectorizer

    return HashingVectorizer(n_features=FEATURES, ngram_range=(1, 2), alternate_sign=False)


def new_classifier(seed: int) -> Any:
    """A linear classifier that has learnt nothing yet; every kind of text weighs the same."""
    from sklearn.linear_model import SGDClassifier

    return SGDClassifier(
        loss="log_loss", alpha=1e-5, max_iter=EPOCHS, tol=None, average=True, class_weight="balanced",
        random_state=seed,
    )  # fmt: skip


def fold_of(text: str) -> int:
    """Which fold a document is in, by its hash alone."""
    return hashlib.sha256(text.encode()).digest()[16] % FOLDS


def half_of(text: str) -> int:
    """Which half of the private documents a document is in, by its hash alone, in either fold alike."""
    return hashlib.sha256(text.encode()).digest()[17] % 2


def _sample(path: Path) -> tuple[list[str], int]:
    """Up to `MOST` documents, evenly over the file and chosen by their hash, and how many with text there are."""
    total = sum(1 for _ in _with_text(path))
    if total < LEAST:
        raise InputError(
            f"{path}: {total} documents with text, expected at least {LEAST}. With fewer nothing can be said about how "
            "well they are told apart."
        )
    limit = MOST / total * 2**64
    texts = [text for text in _with_text(path) if _number(text) < limit]
    parts = Counter((fold_of(text), half_of(text)) for text in texts)
    if len(parts) < 2 * FOLDS or min(parts.values()) < 2:
        raise InputError(f"{path}: nearly all documents are the same. Give text of more than one kind.")
    return texts, total


def _with_text(path: Path) -> Iterator[str]:
    return (text[:CHARACTERS] for text in read_documents(path) if text.strip())


def _number(text: str) -> int:
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big")


def _top(score_P: Floats, count: int) -> Integers:
    """The places of the `count` highest scores, the earlier one first where they are the same."""
    return np.argsort(-score_P, kind="stable")[:count]


def _shared(one: Integers, other: Integers) -> int:
    return len(np.intersect1d(one, other))


def _write(public: Path, picked: Integers, margin_P: npt.NDArray[np.floating[Any]], path: Path) -> float:
    """Writes the picked documents; returns the lowest score among them."""
    scores = {int(place): round(float(1 / (1 + np.exp(-float(margin_P[place])))), 3) for place in picked}
    documents = (text for text in read_documents(public) if text.strip())
    with path.open("wb") as raw, gzip.GzipFile("", "wb", fileobj=raw, mtime=0) as file:  # keeps no name, no time
        for place, text in enumerate(documents):
            if place in scores:
                line = json.dumps({"text": text, "score": scores[place]}, ensure_ascii=False)
                file.write(line.encode() + b"\n")
    return min(scores.values())


def _log2_choices(documents: int, chosen: int) -> float:
    """log2 of the number of ways to choose."""
    return (math.lgamma(documents + 1) - math.lgamma(chosen + 1) - math.lgamma(documents - chosen + 1)) / math.log(2)


def require_extra() -> None:
    """Raises `InputError` unless scikit-learn is there."""
    try:
        import sklearn  # noqa: F401
    except ImportError:
        raise InputError("scikit-learn is not installed. Install it with pip install 'flexo[proxies]'.") from None
