"""Training a byte-level BPE tokenizer on public text."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

END_OF_TEXT = "<|endoftext|>"
PAD = "<|pad|>"
LONGEST = 128  # characters of a word
LONG = re.compile(
    rf"(?<![^\W\d_])[^\W\d_]{{{LONGEST + 1},}}+"  # letters
    rf"|(?<!\s)\s{{{LONGEST + 1},}}+"
    rf"|(?<![^\w\s])(?<!_)(?:[^\w\s]|_){{{LONGEST + 1},}}+"
)
BLANKS = re.compile(rf"\s{{{LONGEST + 1}}}")


def train_tokenizer(texts: Iterable[str], vocab_size: int) -> Tokenizer:
    """A byte-level BPE tokenizer with single digits as tokens; `<|endoftext|>` has id 0 and `<|pad|>` id 1.

    Every byte is in the vocabulary, so any text can be encoded and decodes to itself. There are fewer than `vocab_size`
    tokens when the texts have no more to merge.
    """
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[END_OF_TEXT, PAD],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator((part for text in texts for part in without_long_words(text)), trainer)
    return tokenizer


def without_long_words(text: str) -> Iterator[str]:
    """A text cut wherever a word goes on for more than `LONGEST` characters: letters, signs or blanks without an end.

    The trainer takes a time that grows with the square of a word's length: 100,000 times one letter took 13 seconds,
    200,000 times 60. What other words are learned from is not changed.
    """
    if max(map(len, text.split()), default=0) <= LONGEST and not BLANKS.search(text):  # as nearly always, and quickly
        yield text
        return
    first = 0
    for run in LONG.finditer(text):
        for cut in range(run.start() + LONGEST, run.end(), LONGEST):
            yield text[first:cut]
            first = cut
    yield text[first:]
