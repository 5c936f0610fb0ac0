"""Membership: whether a document was trained on, told from how likely the model finds it.

loss              nats per token
loss - anchor     the same less the anchor's, which everybody has: a document may be easy without having been seen
"""

from __future__ import annotations

from evals.privacy.attacks.part import Context, Part, Row
from evals.scoring.measure import measure


def run(context: Context) -> list[Row]:
    """The mean loss of members and of non-members."""
    assert context.members is not None and context.non_members is not None, "Part.needs"
    rows = []
    for figure, text in (("loss, members", context.members), ("loss, non-members", context.non_members)):
        losses = []
        for target in (context.target, context.reference):
            with target.enter() as model:
                losses.append(measure(model, text).nats_per_token)
        rows.append(Row("membership", figure, losses[0], reference=losses[1]))
    return rows


PART = Part("membership", ("members",), run)
