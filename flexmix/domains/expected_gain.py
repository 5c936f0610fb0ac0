"""The gain to expect of an expert before anyone trains it, from the divergence of an owner's text from public text.

    flexo-data gain data/corpora/math --anchor anchor

Divergence is measured with bigram models, which cost seconds: held-out own text takes some bits under a model of public
text, and fewer under its mixture with a model of own text. The divergence is the share of the bits that the mixture
saves. KALAVAI (arXiv 2603.22755) measures the same share with trained specialists in place of the bigram models.

The expected gain is the share of bits per byte that an expert saves on own text beside the public one. It is read off a
line through experts that were trained (`KNOWN`). docs/credit.md says how they were measured and what such a forecast
is worth.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import filterfalse
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from flexmix.documents.corpus import find_split
from flexmix.documents.corpus import held_out as is_held_out
from flexmix.tokens.encoder import Encoder, batches, load_encoder
from flexmix.tokens.shard import documents_of
from flexo.errors import InputError

Ids = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]

TOKENS = 200_000  # of own text that are read: as many as the experts of `KNOWN` were trained on
PUBLIC_TOKENS = 3_000_000
HELD_OUT = 200_000  # bytes of held-out own text
BATCH = 1000  # documents that are encoded at once, at most
ROUNDS = 30  # of expectation maximisation; the weights of four models stand still long before
COVERED = 0.8  # of the interval
REFERENCE = Path("flexo/public")  # in an anchor's folder: the public text that it ships


@dataclass(frozen=True)
class Known:
    """One trained expert: the divergence of its text, and the share of bits per byte that it saves there."""

    run: str
    domain: str
    divergence: float
    gain: float


@dataclass(frozen=True)
class Divergence:
    """How far held-out own text is from public text, for a bigram model."""

    before: float  # bits per byte under the public model
    after: float  # ... under its mixture with the model of own text
    own_tokens: int
    public_tokens: int

    @property
    def share(self) -> float:
        """The share of the bits that the mixture saves, from 0 to 1."""
        return 1 - self.after / self.before


@dataclass(frozen=True)
class Gain:
    """The share of bits per byte that an expert is expected to save on own text, with an interval for one expert."""

    expected: float
    low: float
    high: float


def measure_divergence(
    own: Iterable[str], held_out: Sequence[str], public: Iterable[str], encoder: Encoder, tokens: int = TOKENS
) -> Divergence:
    """How far a domain is from public text.

    Args:
        own: training documents; the first `tokens` tokens are read.
        held_out: other documents of the same domain.
        public: public documents; the first `PUBLIC_TOKENS` tokens are read.
        encoder: the anchor's tokenizer.
        tokens: as many as the expert will be trained on.

    Raises:
        InputError: one of the three holds too little text.
    """
    read_public = _Bigrams(_read(public, encoder, PUBLIC_TOKENS, "public text"), encoder)
    read_own = _Bigrams(_read(own, encoder, tokens, "own text"), encoder)
    nbytes = sum(len(text.encode()) for text in held_out)
    ids = _read(held_out, encoder, None, "held-out own text")
    scored = ids[1:] != encoder.end_of_text
    before, after = ids[:-1][scored], ids[1:][scored]
    p_2N, q_2N = read_public.probabilities(before, after), read_own.probabilities(before, after)
    bits = len(after) / nbytes
    return Divergence(
        _mixed(p_2N) * bits, _mixed(np.concatenate([p_2N, q_2N])) * bits, read_own.tokens, read_public.tokens
    )


def forecast(
    own: Path, anchor: Path, held_out: Path | None = None, public: Path | None = None, tokens: int = TOKENS
) -> Divergence:
    """`measure_divergence` of files: `flexo-data gain` as a plain function, together with `expected_gain`.

    Args:
        own: a file of documents, or a folder with a training split.
        anchor: a folder; its tokenizer is used.
        held_out: other documents of the domain; None takes the test split of a folder, and of a file one document in
            twenty, chosen by its hash, which is then not read as training text.
        public: a file of public text, or a folder with a training split; None takes what the anchor ships.
        tokens: as many as the expert will be trained on.

    Raises:
        InputError: a file is missing or holds too little text.
    """
    public = anchor / REFERENCE if public is None else public
    if not public.exists():
        raise InputError(f"{public}: no public text came with this anchor. Name some: --public FILE.")
    splits = own.is_dir() and held_out is None
    train = find_split(own, "train") if own.is_dir() else own
    test = find_split(own, "test") if splits else held_out
    tested = filter(is_held_out, documents_of(train, anchor)) if test is None else documents_of(test, anchor)
    documents = documents_of(train, anchor)
    if test is None:
        documents = filterfalse(is_held_out, documents)
    read_public = documents_of(find_split(public, "train") if public.is_dir() else public, anchor)
    return measure_divergence(documents, _first(tested, HELD_OUT), read_public, load_encoder(anchor), tokens)


def expected_gain(divergence: float, known: Sequence[Known] | None = None) -> Gain:
    """The gain on the line through all known experts; the interval is that of `left_out_errors` (a jackknife).

    Args:
        divergence: `Divergence.share`.
        known: experts to learn from; None: `KNOWN`.
    """
    known = KNOWN if known is None else known
    errors = sorted(map(abs, left_out_errors(known)))
    half = errors[min(len(errors), math.ceil(COVERED * (len(errors) + 1))) - 1]
    slope, intercept = line(known)
    value = intercept + slope * divergence
    return Gain(*(min(1.0, part) for part in (value, value - half, value + half)))  # all bits are all that can be saved


def line(known: Sequence[Known], degree: int = 1) -> tuple[float, ...]:
    """Slope and intercept of the least-squares line, every run counting the same. Degree 0: the mean gain alone."""
    runs = [one.run for one in known]
    weights = np.array([1 / runs.count(run) for run in runs]) ** 0.5
    found = np.polyfit([one.divergence for one in known], [one.gain for one in known], degree, w=weights)
    return tuple(map(float, found))


def left_out_errors(known: Sequence[Known] | None = None, degree: int = 1) -> list[float]:
    """For each expert, the forecast by the line through experts of other domains, less its gain.

    With degree 0 the forecast is their mean, which knows nothing of the text: what a divergence is worth is the
    difference.
    """
    known = KNOWN if known is None else known
    errors = []
    for one in known:
        others = line([other for other in known if other.domain != one.domain], degree)
        errors.append(float(np.polyval(others, one.divergence)) - one.gain)
    return errors


class _Bigrams:
    """Unigram and bigram counts of a text, and probabilities by Witten-Bell interpolation.

    `p(b | a) = (c(a b) + t(a) p(b)) / (c(a) + t(a))`, t(a) the number of different tokens that follow a (I. H. Witten
    and T. C. Bell, 1991).
    """

    def __init__(self, ids: Ids, encoder: Encoder) -> None:
        self.size = encoder.tokenizer.get_vocab_size()
        self.tokens = len(ids)
        count_V = np.bincount(ids, minlength=self.size) + 0.5
        self.p_V = count_V / count_V.sum()
        self.pairs, self.counts = np.unique(ids[:-1] * self.size + ids[1:], return_counts=True)
        first = self.pairs // self.size
        self.followed_V = np.bincount(first, weights=self.counts, minlength=self.size)
        self.kinds_V = np.bincount(first, minlength=self.size)

    def probabilities(self, before: Ids, after: Ids) -> Floats:
        """Of each token after the one before, by unigrams and by bigrams, [2, N]."""
        pair = before * self.size + after
        place = np.minimum(np.searchsorted(self.pairs, pair), len(self.pairs) - 1)
        count_N = np.where(self.pairs[place] == pair, self.counts[place], 0)
        p_N, kinds_N, followed_N = self.p_V[after], self.kinds_V[before], self.followed_V[before]
        seen = followed_N > 0
        bigram_N = np.where(seen, (count_N + kinds_N * p_N) / np.maximum(followed_N + kinds_N, 1), p_N)
        return np.stack([p_N, bigram_N])


def _mixed(p_MN: Floats) -> float:
    """Bits per token under the mixture of M models, with the weights that are best for this text."""
    weight_M = np.full(len(p_MN), 1 / len(p_MN))
    for _ in range(ROUNDS):
        part_MN = weight_M[:, None] * p_MN
        weight_M = (part_MN / part_MN.sum(0)).mean(1)
    return float(-np.log2(weight_M @ p_MN).mean())


def _first(texts: Iterable[str], nbytes: int) -> list[str]:
    """The first documents with so many bytes; none is cut."""
    found: list[str] = []
    for text in texts:
        if nbytes <= 0:
            break
        found.append(text)
        nbytes -= len(text.encode())
    return found


def _read(texts: Iterable[str], encoder: Encoder, most: int | None, what: str) -> Ids:
    """Token ids of documents, each behind an end-of-text token; the first `most` of them."""
    parts: list[npt.NDArray[Any]] = []
    read = 0
    for batch in batches((text for text in texts if text.strip()), BATCH, len):
        ids, _ = encoder.encode(batch)
        parts.append(ids)
        read += len(ids)
        if most is not None and read >= most:
            break
    found: Ids = np.concatenate(parts).astype(np.int64)[:most] if parts else np.zeros(0, np.int64)
    if len(found) < 100:
        raise InputError(f"{what}: {len(found)} tokens in it. Expected 100 at the very least, better {TOKENS:,}.")
    return found


KNOWN = tuple(
    Known(run, domain, divergence, gain)
    for run, experts in {
        "study": {  # docs/results.md, mean of three seeds, 200 kB a domain
            "academic": (0.2109, 0.1549),
            "code": (0.4348, 0.6650),
            "creative": (0.1007, 0.0897),
            "educational": (0.0788, 0.0885),
            "math": (0.2350, 0.3255),
            "news": (0.0568, 0.0706),
            "reddit": (0.0964, 0.1528),
        },
        "sample": {  # sample corpora, seed 0, 20 kB a domain
            "code": (0.1421, 0.0988),
            "creative": (0.1148, 0.0859),
            "educational": (0.1424, 0.1061),
            "math": (0.2086, 0.2682),
            "news": (0.1104, 0.1039),
            "reddit": (0.1041, 0.0778),
        },
        "demo": {  # `make demo`, 400,000 tokens an expert, 40 kB a domain
            "code": (0.1721, 0.1306),
            "creative": (0.1345, 0.1158),
            "math": (0.2238, 0.4036),
        },
        "NorMuon": {  # sample corpora, mean of three seeds, Perl and manuals one; 120,000 tokens, 40 kB a domain
            "academic": (0.0809, 0.0576),
            "code": (0.1119, 0.1122),
            "creative": (0.1035, 0.1143),
            "educational": (0.1463, 0.1153),
            "manuals": (0.3604, 0.3628),
            "math": (0.1821, 0.2652),
            "news": (0.0922, 0.1114),
            "perl": (0.3024, 0.2571),
            "reddit": (0.0786, 0.0986),
        },
    }.items()
    for domain, (divergence, gain) in experts.items()
)
