"""Questions with one right answer, and multiple choice made of them that cannot be guessed without the question.

    What follows A?  a, b, c or d        four questions of one kind ask with the same four answers,
    What follows B?  a, b, c or d        each of them right once, all of one length
    What follows C?  a, b, c or d
    What follows D?  a, b, c or d

A model that ignores the question gives all four the same answer and is right once: chance is exactly 1/4, for every
model.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable
from dataclasses import dataclass
from heapq import heapify, heappop, heappush
from random import Random

CHOICES = 4


@dataclass(frozen=True)
class Question:
    """A prompt, and the answer that follows it after a space."""

    prompt: str
    answer: str
    kind: str  # questions that share choices are of one kind
    origin: Hashable  # what it was made from: no two of a four share one


@dataclass(frozen=True)
class Choice:
    """A question with its choices."""

    prompt: str
    choices: tuple[str, ...]
    answer: int  # the place of the right one
    kind: str


def in_fours(questions: Iterable[Question], count: int, dice: Random) -> list[Choice]:
    """At most `count` multiple-choice questions, a multiple of four; a question without three like it is left out.

    Origins with many questions left are used first, which makes the most questions.
    """
    alike: dict[tuple[str, int], dict[Hashable, list[Question]]] = {}
    for question in questions:
        origins = alike.setdefault((question.kind, len(question.answer)), {})
        origins.setdefault(question.origin, []).append(question)
    fours = []
    for origins in alike.values():
        heap = [(-len(held), place, held) for place, held in enumerate(origins.values())]
        heapify(heap)
        while len(heap) >= CHOICES:
            fullest = [heappop(heap) for _ in range(CHOICES)]
            fours.append([held.pop() for _, _, held in fullest])
            for less, place, held in fullest:
                if held:
                    heappush(heap, (less + 1, place, held))
    dice.shuffle(fours)
    return [
        Choice(question.prompt, tuple(one.answer for one in four), place, question.kind)
        for four in fours[: count // CHOICES]
        for place, question in enumerate(four)
    ]
