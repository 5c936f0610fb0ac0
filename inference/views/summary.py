"""Attribution for accounts: how many tokens each owner's experts made, rounded, and nothing of any single token.

    summarise(record.answers(x_BS, prompt))          # {"owners": [{"owner": "math", "tokens": 60}], "others": None}

The full attribution of a text is as sensitive as the text: from the router's weights of every token, much of it can be
read back (docs/privacy.md). A summary has one rounded number for each owner with enough tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from inference.attribution import Answer, Expert

FLOOR = 50  # tokens below which an owner is not reported
STEP = 10  # tokens are rounded to multiples of it

COUNTED = (
    "Sums over tokens of each owner's part of the router weights, rounded; owners below the floor are added up as "
    "others, and others below the floor are not reported."
)


def summarise(answers: Sequence[Answer], floor: int = FLOOR, step: int = STEP) -> dict[str, Any]:
    """Tokens by owner over some answers of one model, for JSON.

    An owner is a contact, with all experts that name it; an expert without a contact is an owner by its domain.

    Args:
        answers: what was generated, at least one answer.
        floor: tokens below which an owner is not reported but added to `others`; `others` is None below it, too.
        step: all numbers are rounded to multiples of it.
    """
    sum_E = sum(answer.share_TE.sum(0) for answer in answers)
    assert not isinstance(sum_E, int), "a summary of no answer"
    tokens: dict[str, float] = {}
    for expert, count in zip(answers[0].experts, sum_E.tolist(), strict=True):
        tokens[_owner(expert)] = tokens.get(_owner(expert), 0.0) + count
    known = {owner: count for owner, count in tokens.items() if count >= floor}
    others = sum(tokens.values()) - sum(known.values())
    return {
        "format": "flexo.attribution-summary", "version": 1, "counted": COUNTED, "floor": floor, "step": step,
        "owners": [{"owner": owner, "tokens": _rounded(count, step)} for owner, count in known.items()],
        "others": _rounded(others, step) if others >= floor else None,
    }  # fmt: skip


def _owner(expert: Expert) -> str:
    return expert.contact or expert.domain


def _rounded(count: float, step: int) -> int:
    return step * round(count / step)
