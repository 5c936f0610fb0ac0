"""Mixed text: windows whose domain changes at random places, and documents that blend two domains.

    switch    |math math math|code code|public public public public|     anywhere, also within a sentence
    blend     a sentence of math. A sentence of news. A sentence of math. A sentence of news. ...

Every token keeps its domain, so routing is judged token by token. The same seed gives the same text, and every
model scores the same tokens of it.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from random import Random

from tokenizers import Tokenizer

from evals.scoring.sliding_windows import TokenisedText
from flexo.errors import InputError

SWITCH, BLEND = "mixed/switching", "mixed/blended"
SHORTEST = 16  # tokens of one domain at a stretch
MOST_SWITCHES = 3  # in a window
SENTENCE = re.compile(r"(?<=[.!?;:])\s+|\n+")

Stretches = list[tuple[int, str]]  # the place of a domain, and a stretch of its text


def is_mixed(domain: str) -> bool:
    """Whether this is the name of mixed text, which no mean over domains counts."""
    return domain in (SWITCH, BLEND)


def mixed_texts(
    texts: Mapping[str, TokenisedText],
    tokenizer: Tokenizer,
    *,
    windows: int,
    length: int = 256,
    seed: int = 0,
) -> dict[str, TokenisedText]:
    """`mixed/switching` and `mixed/blended` from documents of at least two domains.

    Args:
        texts: domain -> text, its documents kept with it.
        tokenizer: of the models to be scored.
        windows: documents of each kind to make; one fills a window of `length` tokens at most, its end-of-text token
            included, or a few more where a cut makes other tokens.
        length: tokens in a window.
        seed: of the random choices.
    """
    if len(texts) < 2:
        raise InputError(f"mixed text of {', '.join(texts) or 'nothing'}: expected at least two domains.")
    domains = tuple(texts)
    documents = [text.texts or [] for text in texts.values()]
    end = next(iter(texts.values())).end_of_text
    made = {}
    for name, make in ((SWITCH, _switched), (BLEND, _blended)):
        dice = Random(f"{name} {seed}")
        made[name] = _tokenised(
            [make(documents, tokenizer, length - 1, dice) for _ in range(windows)], domains, tokenizer, end
        )
    return made


def _switched(documents: Sequence[list[str]], tokenizer: Tokenizer, length: int, dice: Random) -> Stretches:
    switches = min(dice.randint(1, MOST_SWITCHES), length // SHORTEST - 1)
    room = length - SHORTEST * (switches + 1)
    cuts = sorted(dice.randint(0, max(0, room)) for _ in range(max(0, switches)))
    sizes = [SHORTEST + after - before for before, after in zip([0, *cuts], [*cuts, max(0, room)], strict=True)]
    stretches: Stretches = []
    for size in sizes:
        others = [d for d in range(len(documents)) if not stretches or d != stretches[-1][0]]
        domain = dice.choice(others)
        text = dice.choice(documents[domain])
        start = dice.randrange(max(1, len(text) - 4 * size))
        start = text.find(" ", start) + 1 if start else 0
        stretches.append((domain, _cut(text[start:], tokenizer, size)))
    return stretches


def _blended(documents: Sequence[list[str]], tokenizer: Tokenizer, length: int, dice: Random) -> Stretches:
    pair = dice.sample(range(len(documents)), 2)
    streams = [[part for part in SENTENCE.split(dice.choice(documents[domain])) if part.strip()] for domain in pair]
    stretches: Stretches = []
    for one, other in zip(*streams, strict=False):
        for domain, sentence in zip(pair, (one, other), strict=True):
            if length <= 0:
                return stretches
            sentence = _cut(sentence + "\n", tokenizer, length)
            length -= len(_encode(tokenizer, sentence))
            stretches.append((domain, sentence))
    return stretches


def _cut(text: str, tokenizer: Tokenizer, size: int) -> str:
    """The start of a text in `size` tokens, about: the cut is between characters."""
    text = text[: 16 * size]
    encoding = tokenizer.encode(text, add_special_tokens=False)
    return text if len(encoding.ids) <= size else text[: encoding.offsets[size][0]]


def _encode(tokenizer: Tokenizer, text: str) -> list[int]:
    ids: list[int] = tokenizer.encode(text, add_special_tokens=False).ids
    return ids


def _tokenised(made: list[Stretches], domains: tuple[str, ...], tokenizer: Tokenizer, end: int) -> TokenisedText:
    """Each stretch is encoded by itself, so that no token holds text of two domains."""
    encoded = [[(domain, _encode(tokenizer, text)) for domain, text in stretches] for stretches in made]
    texts = ["".join(text for _, text in stretches) for stretches in made]
    return TokenisedText(
        documents=[[i for _, ids in stretches for i in ids] for stretches in encoded],
        nbytes=sum(len(text.encode()) for text in texts),
        end_of_text=end,
        domains=domains,
        domain_ids=[[domain for domain, ids in stretches for _ in ids] for stretches in encoded],
        texts=texts,
    )
