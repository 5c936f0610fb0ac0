"""Passages of documents and how they go on: which of four continuations is the true one?

    passage        Enzymes speed up reactions. Without them, a cell would have to wait for years.
    continuation   Each of them fits one substance, as a key fits a lock, and leaves all

Both come from one paragraph; the continuation starts with a sentence and is cut at a word. The other three continue
passages of other documents.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from random import Random

from evals.tasks.questions import CHOICES, Choice, Question, in_fours
from flexo.errors import InputError

PARAGRAPH = re.compile(r"\n\s*\n")
SENTENCE = re.compile(r"(?<=[.!?]) (?=\W{0,3}[^\W\d_a-z])")  # a full stop, and a letter that is not small
PASSAGE = (200, 600)  # characters, whole sentences
CONTINUATION = (60, 80)  # characters, whole words


def continuations(texts: Sequence[str], count: int, dice: Random, where: str) -> list[Choice]:
    """Multiple choice of at most `count` questions from some documents; `where` names them in a refusal.

    Raises:
        InputError: there are no four passages of four documents whose continuations have the same length.
    """
    found = [question for place, text in enumerate(texts) for question in _passages(text, place)]
    dice.shuffle(found)
    made = in_fours({question.answer: question for question in found}.values(), count, dice)  # headings come again
    if not made:
        raise InputError(
            f"{where}: no multiple choice can be made of its {len(texts)} documents, with {len(found)} passages of "
            f"{PASSAGE[0]} characters and more that go on in their paragraph. Expected {CHOICES} documents of prose at "
            "least, better fifty: raise --max-bytes, or name other domains with --choices ('' for none)."
        )
    return made


def _passages(text: str, document: int) -> Iterator[Question]:
    """Passages of a document that do not overlap, each with its continuation."""
    for paragraph in PARAGRAPH.split(text):
        flow = " ".join(paragraph.split())
        start = 0
        for sentence in SENTENCE.finditer(flow):
            passage = flow[start : sentence.start()]
            if len(passage) < PASSAGE[0]:
                continue
            start = sentence.end()
            continuation = flow[start : start + CONTINUATION[1] + 1].rpartition(" ")[0]
            if len(passage) <= PASSAGE[1] and len(continuation) >= CONTINUATION[0]:
                yield Question(passage, continuation, "continuation", document)
