"""Arithmetic with one exact answer, from small sums to sums of three digits. The same seed makes the same questions."""

from __future__ import annotations

from collections.abc import Callable
from random import Random

from evals.tasks.questions import Question

# kind -> what both numbers are drawn from, and the sum that they make
KINDS: dict[str, tuple[range, Callable[[int, int], tuple[str, int]]]] = {
    "small sum": (range(1, 13), lambda a, b: (f"{a} + {b}", a + b)),
    "small product": (range(2, 13), lambda a, b: (f"{a} * {b}", a * b)),
    "difference": (range(10, 100), lambda a, b: (f"{a + b} - {a}", b)),
    "sum": (range(10, 100), lambda a, b: (f"{a} + {b}", a + b)),
    "large sum": (range(100, 1000), lambda a, b: (f"{a} + {b}", a + b)),
}


def arithmetic(count: int, dice: Random) -> list[Question]:
    """About `count` questions, as many of each kind, none twice; of a kind with small numbers there are only so many.

    A question ends where its answer must follow: `What is 7 + 8?`, an empty line, `7 + 8 =`.
    """
    made = []
    for kind, (numbers, ask) in KINDS.items():
        pairs = range(len(numbers) ** 2)
        for pair in dice.sample(pairs, min(len(pairs), -(-count // len(KINDS)))):
            a, b = divmod(pair, len(numbers))
            asked, answer = ask(numbers[a], numbers[b])
            made.append(Question(f"What is {asked}?\n\n{asked} =", str(answer), kind, answer))
    return made
