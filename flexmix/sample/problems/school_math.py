"""School mathematics made from templates: a question, the steps, the answer. The same list on every machine."""

from __future__ import annotations

from collections.abc import Iterator
from random import Random

from flexmix.sample.problems.algebra import ALGEBRA
from flexmix.sample.problems.arithmetic import NUMBERS
from flexmix.sample.problems.shapes_and_chance import SHAPES_AND_CHANCE
from flexmix.sample.problems.word_problems import STORIES

FAMILIES = (*NUMBERS, *ALGEBRA, *SHAPES_AND_CHANCE, *STORIES)


def problems(count: int = 16_000) -> Iterator[str]:
    """The first `count` problems, the families taking turns. Where numbers are small, some come twice."""
    for index in range(count):
        family = FAMILIES[index % len(FAMILIES)]
        yield family(Random(f"{family.__name__} {index}"))
