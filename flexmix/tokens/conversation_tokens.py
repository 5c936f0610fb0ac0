"""Token ids of conversations: the special tokens that a chat template writes, and which tokens are answers.

document   E <|user|> Why ? <|assistant|> Because .      E starts the next document
answers                                   ^^^^^^^^^      first 6, end 9: the end-of-text behind belongs to an answer
                                                         that ends its document, or else a model would not learn to stop
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from itertools import chain

import numpy as np
import numpy.typing as npt

from flexmix.documents.source import Conversation
from flexmix.tokens import encoder as encoding
from flexmix.tokens.encoder import Encoder, Ids, Lengths

Answers = npt.NDArray[np.int64]  # [S, 3]: document, first token in it, token behind the last
NO_ANSWERS: Answers = np.zeros((0, 3), np.int64)


def encode_documents(
    encoder: Encoder, texts: Sequence[str], talks: Sequence[Conversation | None]
) -> tuple[Ids, Lengths, Answers]:
    """As `Encoder.encode`, and where the answers are in those texts that are conversations."""
    if not any(talks):
        return *encoder.encode(list(texts)), NO_ANSWERS.copy()
    runs: list[Ids] = []
    lengths, answers = np.zeros(len(texts), np.int64), []
    for n, (text, talk) in enumerate(zip(texts, talks, strict=True)):
        if talk is None:
            ids = encoder.encode([text])[0]
        else:
            ids, spans = encode_conversation(encoder, talk)
            answers += [(n, first, end) for first, end in spans]
        runs.append(ids)
        lengths[n] = len(ids)
    return np.concatenate(runs), lengths, np.array(answers, np.int64).reshape(-1, 3)


def encode_conversation(encoder: Encoder, talk: Conversation) -> tuple[Ids, list[tuple[int, int]]]:
    """Token ids after an end-of-text token, and the tokens of the answers.

    The end-of-text tokens with which a template begins and ends a conversation are those of the document.
    """
    ids, start, end = _tokens(encoder, talk)
    lead = int(len(ids) > 0 and ids[0] == encoder.end_of_text)
    last = len(ids) - int(len(ids) > lead and ids[-1] == encoder.end_of_text)
    spans = []
    for first, behind in talk.answers:
        low = int(np.searchsorted(end, first, side="right"))
        high = int(np.searchsorted(start, behind, side="left"))
        high = last + 1 if high >= last else high
        if low < high:
            spans.append((low - lead + 1, high - lead + 1))
    head = np.array([encoder.end_of_text], encoder.dtype)
    return np.concatenate([head, ids[lead:last].astype(encoder.dtype)]), spans


def _tokens(encoder: Encoder, talk: Conversation) -> tuple[npt.NDArray[np.int64], Lengths, Lengths]:
    """Ids without the first end-of-text token, and the characters at which each starts and ends."""
    tokenizer = encoder.tokenizer
    if not talk.spelled and len(talk.text) <= encoding.STRETCH:  # as transformers encodes a prompt
        tokenizer.encode_special_tokens = False
        try:
            found = tokenizer.encode(talk.text, add_special_tokens=False)
        finally:
            tokenizer.encode_special_tokens = True
        offsets = np.array(found.offsets, np.int64).reshape(-1, 2)
        return np.array(found.ids, np.int64), offsets[:, 0], offsets[:, 1]
    ids: list[list[int]] = []
    offsets_: list[list[tuple[int, int]]] = []
    for text, at, special in _parts(encoder, talk):
        if special is not None:
            ids.append([special])
            offsets_.append([(at, at + len(text))])
            continue
        for stretch in encoding.stretches(text, encoding.STRETCH):
            found = tokenizer.encode(stretch, add_special_tokens=False)
            ids.append(found.ids)
            offsets_.append([(at + first, at + last) for first, last in found.offsets])
            at += len(stretch)
    both = np.array(list(chain(*offsets_)), np.int64).reshape(-1, 2)
    return np.array(list(chain(*ids)), np.int64), both[:, 0], both[:, 1]


def _parts(encoder: Encoder, talk: Conversation) -> Iterator[tuple[str, int, int | None]]:
    """The text in parts: special tokens of the template with their ids, and what is between them; with the place."""
    added = encoder.tokenizer.get_added_tokens_decoder()
    specials = {token.content: number for number, token in added.items() if token.special}
    pattern = "|".join(map(re.escape, sorted(specials, key=len, reverse=True)))
    at = 0
    for match in re.finditer(pattern, talk.text) if pattern else ():
        if any(match.start() < place < match.end() for place in talk.spelled):
            continue
        if match.start() > at:
            yield talk.text[at : match.start()], at, None
        yield match[0], match.start(), specials[match[0]]
        at = match.end()
    if at < len(talk.text):
        yield talk.text[at:], at, None
