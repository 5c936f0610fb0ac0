from __future__ import annotations

import hashlib
from collections import Counter
from dataclasses import astuple
from random import Random

import pytest

from evals.tasks.arithmetic import KINDS, arithmetic
from evals.tasks.passages import continuations
from evals.tasks.questions import Choice, Question, in_fours
from flexo.errors import InputError


def right(made: list[Choice], likes: dict[str, float]) -> float:
    """The accuracy of someone who looks at the choices alone."""
    return sum(max(one.choices, key=likes.__getitem__) == one.choices[one.answer] for one in made) / len(made)


def test_whoever_ignores_the_question_is_right_in_one_of_four() -> None:
    dice = Random(0)
    asked = [Question(f"{n}?", f"{dice.randrange(10**6):07}", "ab"[n % 2], n % 9) for n in range(200)]
    truth = {question.prompt: question for question in asked}
    made = in_fours(asked, 160, Random(0))
    assert len(made) == 160 and len({one.prompt for one in made}) == 160
    for start in range(0, 160, 4):
        four = [truth[one.prompt] for one in made[start : start + 4]]
        assert all(one.choices == tuple(question.answer for question in four) for one in made[start : start + 4])
        assert [one.answer for one in made[start : start + 4]] == [0, 1, 2, 3]
        assert len({question.origin for question in four}) == 4
        assert len({(question.kind, len(question.answer)) for question in four}) == 1
    for _ in range(20):
        assert right(made, {question.answer: dice.random() for question in asked}) == 0.25
    assert in_fours(asked, 160, Random(0)) == made != in_fours(asked, 160, Random(1))
    assert in_fours(asked[:6], 160, Random(0)) == []  # three of each kind


def test_arithmetic_is_right_and_the_same_on_every_machine() -> None:
    made = arithmetic(400, Random("arithmetic 0"))
    assert Counter(one.kind for one in made) == dict.fromkeys(KINDS, 80)
    assert len({one.prompt for one in made}) == 400
    for one in made:
        first, empty, last = one.prompt.split("\n")
        assert empty == "" and first == f"What is {last.removesuffix(' =')}?"
        a, sign, b, _ = last.split()
        assert {"+": int(a) + int(b), "-": int(a) - int(b), "*": int(a) * int(b)}[sign] == int(one.answer) >= 0
    digest = hashlib.sha256(repr([astuple(one) for one in made]).encode()).hexdigest()
    assert digest == "a9a9347724a321965f2b2255baa92ecbc7e3cdcc2f598733e9279feee208d3f2"
    assert len(arithmetic(10**4, Random(0))) == 12**2 + 11**2 + 3 * 2000
    choice = in_fours(made, 400, Random(0))
    assert len(choice) > 350 and all(len({*one.choices}) == 4 for one in choice)


def test_continuations_are_true_for_their_passage_and_false_for_the_others(documents: list[str]) -> None:
    flows = [" ".join(text.split()) for text in documents]
    made = continuations(documents, 400, Random(0), "educational")
    assert len(made) >= 8
    for one in made:
        assert 200 <= len(one.prompt) <= 600 and one.prompt.endswith(".")
        assert len({len(choice) for choice in one.choices}) == 1 and 60 <= len(one.choices[0]) <= 80
        (home,) = (flow for flow in flows if one.prompt in flow)
        for place, choice in enumerate(one.choices):
            assert (f"{one.prompt} {choice} " in home) == (place == one.answer) == (choice in home)
    assert continuations(documents, 400, Random(0), "educational") == made
    assert len(continuations(documents, 7, Random(0), "educational")) == 4


def test_text_that_makes_no_multiple_choice_is_refused(documents: list[str]) -> None:
    for texts in (documents[:3], ["short"] * 9, documents[:1] * 9):
        said = rf"^poems: no multiple choice can be made of its {len(texts)} documents, with \d+ passages"
        with pytest.raises(InputError, match=said):
            continuations(texts, 400, Random(0), "poems")
