"""Problems from templates: the arithmetic in every step is right, and the list is the same everywhere."""

from __future__ import annotations

import hashlib
import math
import re
from fractions import Fraction

from flexmix.sample.problems.school_math import FAMILIES, problems

EQUATION = re.compile(r"(?m)(?:^|[:;,] |\b(?:is|are|squared is) )(\d+) ([*+-]) (\d+) = (-?\d+)(?=[.,:;]?(?:$| ))")


def test_the_list_is_the_same_on_every_machine() -> None:
    text = "\0".join(problems(430))
    assert text == "\0".join(problems(430))
    assert (
        hashlib.sha256(text.encode()).hexdigest() == "4cfb6721dddd4dd56147423bda4dba87eae573212a3cbb64d46831453d87770b"
    )


def test_there_are_many_families_and_few_repetitions() -> None:
    made = list(problems(4300))
    assert len(FAMILIES) == len(set(FAMILIES)) == 43
    assert len(set(made)) > 0.95 * len(made)
    for problem in made:
        question, _, solution = problem.partition("\n\n")
        assert question.strip()
        assert solution.splitlines()[-1].startswith("The answer is ")
        assert solution.count("\n") >= 1, "there is at least one step"


def test_every_simple_equation_holds() -> None:
    checked = 0
    for problem in problems(4300):
        for a, sign, b, result in EQUATION.findall(problem):
            values = {"+": int(a) + int(b), "-": int(a) - int(b), "*": int(a) * int(b)}
            assert values[sign] == int(result), problem
            checked += 1
    assert checked > 1500


def test_answers_agree_with_a_second_calculation() -> None:
    seen = set()
    for problem in problems(4300):
        answer = problem.rpartition("The answer is ")[2].removesuffix(".")
        if found := re.match(r"Find the greatest common divisor of (\d+) and (\d+)\.", problem):
            assert int(answer) == math.gcd(*map(int, found.groups()))
        elif found := re.match(r"What is the least common multiple of (\d+) and (\d+)\?", problem):
            assert int(answer) == math.lcm(*map(int, found.groups()))
        elif found := re.match(r"What is (\d+)\^(\d+) mod (\d+)\?", problem):
            assert int(answer) == pow(*map(int, found.groups()))
        elif found := re.match(r"Find \((\S+)\) ([*/]) \((\S+)\)\.", problem):
            a, b = Fraction(found[1]), Fraction(found[3])
            assert Fraction(answer) == (a * b if found[2] == "*" else a / b)
        elif found := re.match(r"Write (\d+) in base (\d+)\.", problem):
            assert int(answer, int(found[2])) == int(found[1])
        elif found := re.match(r"How many teams of (\d+) can be chosen from (\d+) players", problem):
            assert int(answer) == math.comb(int(found[2]), int(found[1]))
        elif found := re.match(r"Two dice with (\d+) faces .* sum (\d+)\?", problem):
            faces = range(1, int(found[1]) + 1)
            hits = sum(i + j == int(found[2]) for i in faces for j in faces)
            assert Fraction(answer) == Fraction(hits, int(found[1]) ** 2)
        else:
            continue
        seen.add(re.sub(r"\d+", "", found.re.pattern))
    assert len(seen) == 7, "every kind of check was used"
