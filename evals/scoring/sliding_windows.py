"""Text as tokens, and the windows in which it is scored, every byte counted once.

A document longer than the window is scored in overlapping windows: each token is predicted from at least half a window
of its own document, none is left out, and no token sees another document.

    document   E a b c d e f g h          E: the end-of-text token, which is context and never scored
    window 1   E a b c                    scores a b c
    window 2       b c d e                scores     d e
    window 3           d e f g            scores     f g
    window 4               f g h          scores     h
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch

BATCH_TOKENS = 8192
CPU_BATCH_TOKENS = 1024  # fits into a core's cache; benchmarks/measuring.md

Window = tuple[list[int], int, list[int]]  # ids, the first place to score, the domain of each id


@dataclass(frozen=True)
class TokenisedText:
    """Documents as token ids, without the end-of-text token, and their size in UTF-8 bytes."""

    documents: list[list[int]]
    nbytes: int
    end_of_text: int
    domains: tuple[str, ...] = ("",)
    domain_ids: list[list[int]] | None = None  # of each token, the place of its domain in `domains`; None: 0
    texts: list[str] | None = None  # the documents as they were read, for a classifier

    @property
    def tokens(self) -> int:
        return sum(map(len, self.documents))

    @cached_property
    def digest(self) -> str:
        """A sha256 over all that a measurement depends on."""
        content = repr((self.documents, self.nbytes, self.end_of_text, self.domains, self.domain_ids))
        return hashlib.sha256(content.encode()).hexdigest()

    def part(self, which: Sequence[int]) -> TokenisedText:
        """The documents at some places; `texts` must not be None."""
        assert self.texts is not None, "this text does not hold its documents"
        texts = [self.texts[n] for n in which]
        return TokenisedText(
            [self.documents[n] for n in which],
            sum(len(text.encode()) for text in texts),
            self.end_of_text,
            self.domains,
            None if self.domain_ids is None else [self.domain_ids[n] for n in which],
            texts,
        )


@dataclass(frozen=True)
class Batch:
    """Windows padded to one length. B windows, T places; N of the places predict a token that is scored."""

    x_BT: torch.Tensor  # noqa: N815 - suffixes are shapes
    known_BT: torch.Tensor  # noqa: N815 - suffixes are shapes; no padding
    predicts_BT: torch.Tensor  # noqa: N815 - suffixes are shapes; the next token is scored from here
    domain_N: torch.Tensor  # noqa: N815 - suffixes are shapes; the place of each scored token's domain

    @property
    def target_N(self) -> torch.Tensor:  # noqa: N802 - suffixes are shapes
        """The scored tokens."""
        return self.x_BT.roll(-1, 1)[self.predicts_BT]


def batches(
    text: TokenisedText, length: int, tokens: int | None = None, device: torch.device | str = "cpu"
) -> Iterator[Batch]:
    """All windows of a text, those of similar length together.

    Args:
        text: the text to score.
        length: tokens in a window, at least 2.
        tokens: in a batch, padding included; a longer window comes alone. None: a number that suits the device.
        device: where the batches are put.
    """
    if tokens is None:
        tokens = CPU_BATCH_TOKENS if torch.device(device).type == "cpu" else BATCH_TOKENS
    domain_ids = text.domain_ids or [[0] * len(ids) for ids in text.documents]
    windows = [
        window
        for ids, domain in zip(text.documents, domain_ids, strict=True)
        for window in _windows([text.end_of_text, *ids], length, [0, *domain])
    ]
    windows.sort(key=lambda window: len(window[0]))
    for rows in _batches(windows, tokens):
        longest = max(len(ids) for ids, _, _ in rows)
        x_BT = torch.full((len(rows), longest), text.end_of_text)
        domain_BT = torch.zeros(len(rows), longest, dtype=torch.long)
        known_BT = torch.zeros(len(rows), longest, dtype=torch.bool)
        scored_BT = torch.zeros(len(rows), longest + 1, dtype=torch.bool)
        for row, (ids, first, domain) in enumerate(rows):
            x_BT[row, : len(ids)] = torch.tensor(ids)
            domain_BT[row, : len(ids)] = torch.tensor(domain)
            known_BT[row, : len(ids)] = True
            scored_BT[row, first : len(ids)] = True
        domain_N = domain_BT[scored_BT[:, :-1]]
        yield Batch(*(part.to(device) for part in (x_BT, known_BT, scored_BT[:, 1:], domain_N)))


def _windows(ids: list[int], length: int, domain: list[int] | None = None) -> Iterator[Window]:
    """Windows of at most `length` ids, and the first place in each that has not been scored before."""
    domain = domain or [0] * len(ids)
    yield ids[:length], 1, domain[:length]
    stride = max(1, length // 2)
    start = 0
    while start + length < len(ids):
        start += stride
        yield ids[start : start + length], length - stride, domain[start : start + length]


def _batches(windows: Sequence[Window], tokens: int) -> Iterator[list[Window]]:
    """Neighbours of similar length, at most `tokens` of them once padded."""
    batch: list[Window] = []
    for window in windows:
        if batch and (len(batch) + 1) * len(window[0]) > tokens:
            yield batch
            batch = []
        batch.append(window)
    if batch:
        yield batch
