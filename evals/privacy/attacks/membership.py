"""Membership: whether a document was trained on, told from how likely the model finds its tokens.

    loss              nats per token; a document may be easy without having been seen
    loss - anchor     the same less the anchor's, which everybody has
    Min-K%++          the least likely tokens, against what the model expected in their places

Each attack says how well it tells members from non-members, for all members and by how often they stand in the text.
Non-members must be of the same source: what else tells the two apart, such as their topic, an attack would count as
membership. `words` does: a classifier of words that has never seen the model. Above 0.55 the figures mean nothing.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from evals.privacy.attacks.documents import groups
from evals.privacy.attacks.part import Context, Part, Row
from evals.privacy.attacks.token_scores import Floats, Scores, scores
from evals.privacy.statistics.detection import Statistic, auc, bootstrap, found_at
from flexmix.domains.proxy_selection import CHARACTERS, new_classifier, new_vectorizer, require_extra
from flexo.console import progress

NAME = "membership"
WORDS = "words alone, without the model: AUC"
TELL_APART = 0.55  # the AUC of a classifier of words above which members and non-members are not of one source
FIGURES: dict[str, Statistic] = {"AUC": auc, "TPR at 1 % FPR": found_at(0.01), "TPR at 0.1 % FPR": found_at(0.001)}
ATTACKS: dict[str, Callable[[Scores, Scores], Floats]] = {  # scores of the model, of the anchor; higher: a member
    "loss": lambda own, _anchor: -own.loss_S,
    "loss - anchor": lambda own, anchor: anchor.loss_S - own.loss_S,
    "Min-K%++": lambda own, _anchor: np.array(own.min_k),
}


def run(context: Context) -> list[Row]:
    """Every attack's figures, for all members and by the times that each stands in the text."""
    members, others = context.members, context.non_members
    assert members is not None and others is not None, "Part.needs"
    require_extra()
    with progress("scoring documents", 2 * (members.text.tokens + others.text.tokens), "tokens") as advance:
        own, anchor = (
            [scores(target, sample.text, context.scores, advance) for sample in (members, others)]
            for target in (context.target, context.reference)
        )
    rows = [_words(context)]
    for attack, statistic in ATTACKS.items():
        of_members, of_others = (statistic(own[n], anchor[n]) for n in (0, 1))
        known = [statistic(anchor[n], anchor[n]) for n in (0, 1)]  # what the anchor alone tells, who has seen neither
        for group, which in groups(np.array(members.copies)).items():
            for figure, of in FIGURES.items():
                found = bootstrap(of, of_members[which], of_others, seed=context.settings.seed)
                chance = of(known[0][which], known[1])
                rows.append(Row(NAME, f"{attack}: {figure}", found.value, found.low, found.high, chance, group))
    return rows


def _words(context: Context) -> Row:
    """How well a classifier that never saw the model tells them apart by their words, in five folds."""
    members, others = context.members, context.non_members
    assert members is not None and others is not None, "Part.needs"
    from sklearn.model_selection import StratifiedKFold, cross_val_predict

    texts = [text[:CHARACTERS] for sample in (members, others) for text in sample.texts]
    is_member_S = np.arange(len(texts)) < len(members.texts)
    folds = StratifiedKFold(5, shuffle=True, random_state=context.settings.seed)
    words_SD = new_vectorizer().transform(texts)
    score_S = cross_val_predict(
        new_classifier(context.settings.seed), words_SD, is_member_S, cv=folds, method="decision_function"
    )
    found = bootstrap(auc, score_S[is_member_S], score_S[~is_member_S], seed=context.settings.seed)
    warning = (
        f"a classifier of words tells members from non-members with an AUC of {found.value:.2f}: they are not of one "
        "source, and the figures of membership mean nothing. Split one source by hash: flexo-data prepare does."
    )
    return Row(NAME, WORDS, found.value, found.low, found.high, warning=warning if found.value > TELL_APART else "")


PART = Part(NAME, ("--source",), run)
