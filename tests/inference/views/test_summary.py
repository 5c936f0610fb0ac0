"""Tokens by owner, rounded, with a floor."""

from __future__ import annotations

import torch

from inference.attribution import Answer, Expert
from inference.views.summary import summarise

EXPERTS = [
    Expert("public", "", "", ""),
    Expert("math", "", "", "a@example.org"),
    Expert("news", "", "", ""),
    Expert("code", "", "", "a@example.org"),
]


def answer(tokens: int, parts: list[float]) -> Answer:
    weight_TLE = torch.tensor(parts, dtype=torch.float64).expand(tokens, 2, 4) / 3
    return Answer(EXPERTS, [7] * tokens, weight_TLE, [True, True])


def test_owners_are_summed_rounded_and_those_of_few_tokens_pooled() -> None:
    found = summarise([answer(100, [0.1, 0.4, 0.2, 0.3]), answer(203, [0.1, 0.8, 0.1, 0.0])])
    assert found["owners"] == [{"owner": "a@example.org", "tokens": 230}]  # 70 + 162.4
    assert found["others"] == 70  # 30.3 of public, 40.3 of news
    assert summarise([answer(100, [0.1, 0.4, 0.2, 0.3])])["others"] is None
    assert set(found) == {"format", "version", "counted", "floor", "step", "owners", "others"}


def test_an_answer_below_the_floor_says_nothing() -> None:
    """Two short answers of other experts have one and the same summary."""
    found = summarise([answer(49, [1.0, 0.0, 0.0, 0.0])])
    assert found == summarise([answer(12, [0.0, 0.5, 0.5, 0.0])])
    assert found["owners"] == [] and found["others"] is None
