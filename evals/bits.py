"""Bits per byte of documents under a causal language model, every byte counted once.

A document longer than the window is scored in overlapping windows: each token is predicted from at least half a window
of its own document, none is left out, and no token sees another document.

    document   E a b c d e f g h          E: the end-of-text token, which is context and never scored
    window 1   E a b c                    scores a b c
    window 2       b c d e                scores     d e
    window 3           d e f g            scores     f g
    window 4               f g h          scores     h
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.nn import functional as F  # noqa: N812 - the name everyone uses
from transformers import PreTrainedModel


@dataclass(frozen=True)
class TokenisedText:
    """Documents as token ids, without the end-of-text token, and their size in UTF-8 bytes."""

    documents: list[list[int]]
    nbytes: int
    end_of_text: int

    @property
    def tokens(self) -> int:
        return sum(map(len, self.documents))


@torch.inference_mode()
def bits_per_byte(
    model: PreTrainedModel,
    text: TokenisedText,
    *,
    length: int = 256,
    batch_tokens: int = 8192,
    advance: Callable[[float], None] = lambda _tokens: None,
) -> float:
    """Total bits to encode the documents, over their bytes.

    Args:
        model: in evaluation mode; its logits must be its output embedding of the last hidden state, no more.
        text: what to score; at least one byte.
        length: tokens in a window.
        batch_tokens: tokens per forward pass, padding included.
        advance: told the tokens scored after each batch.
    """
    whole: Any = model  # transformers leaves the method without types
    unembed = whole.get_output_embeddings()
    nats = 0.0
    windows = [window for ids in text.documents for window in _windows([text.end_of_text, *ids], length)]
    windows.sort(key=lambda window: len(window[0]))
    for batch in _batches(windows, batch_tokens):
        longest = max(len(ids) for ids, _ in batch)
        x_BT = torch.full((len(batch), longest), text.end_of_text)
        scored_BT = torch.zeros(len(batch), longest, dtype=torch.bool)
        for row, (ids, first) in enumerate(batch):
            x_BT[row, : len(ids)] = torch.tensor(ids)
            scored_BT[row, first : len(ids)] = True
        x_BT, scored_BT = x_BT.to(model.device), scored_BT.to(model.device)
        position_BT = torch.arange(longest, device=model.device).expand(len(batch), longest)
        hidden_BTD = model.base_model(input_ids=x_BT, position_ids=position_BT, use_cache=False).last_hidden_state
        scored = scored_BT[:, 1:]
        logits_NV = unembed(hidden_BTD[:, :-1][scored])  # of the scored places alone
        losses = F.cross_entropy(logits_NV.float(), x_BT[:, 1:][scored], reduction="none")
        nats += losses.double().sum().item()
        advance(len(losses))
    return nats / math.log(2) / text.nbytes


def _windows(ids: list[int], length: int) -> Iterator[tuple[list[int], int]]:
    """Windows of at most `length` ids, and the first place in each that has not been scored before."""
    yield ids[:length], 1
    stride = max(1, length // 2)
    start = 0
    while start + length < len(ids):
        start += stride
        yield ids[start : start + length], length - stride


def _batches(windows: Sequence[tuple[list[int], int]], tokens: int) -> Iterator[list[tuple[list[int], int]]]:
    """Neighbours of similar length, at most `tokens` of them once padded."""
    batch: list[tuple[list[int], int]] = []
    for window in windows:
        if batch and (len(batch) + 1) * len(window[0]) > tokens:
            yield batch
            batch = []
        batch.append(window)
    if batch:
        yield batch
