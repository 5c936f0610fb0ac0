"""Classifier routing: a whole document goes to one model, chosen by its words. Extra `proxies`.

Linear classifiers of hashed words and word pairs, as in `flexmix.domains.proxy_selection`. Two ways to learn them:

* `pooled`: one classifier of all domains, from everybody's training text. It breaks the rule that no text is shared.
* `pairwise`: each owner learns own against public text at home and shares the classifier's weights; the highest margin
  chooses, and public has margin 0. No text is pooled.

    choose = learn_pairwise({"public": [...], "math": [...], "code": [...]})
    measure_chosen(members, text, choose)
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import reduce
from typing import Any

import numpy as np
import torch

from evals.scoring.ensemble import Member
from evals.scoring.held_out import PUBLIC
from evals.scoring.measure import Advance, Measurement, added, measure
from evals.scoring.router_stats import RouterSums
from evals.scoring.sliding_windows import TokenisedText
from flexmix.domains.proxy_selection import CHARACTERS, Floats, new_classifier, new_vectorizer, require_extra
from flexo.errors import InputError

Choose = Callable[[Sequence[str]], list[str]]  # documents -> the domain of each


def learn_pooled(texts: Mapping[str, Sequence[str]], seed: int = 0) -> Choose:
    """A classifier of all domains from the training documents of each, pooled."""
    names = _checked(texts)
    documents = [text for name in names for text in texts[name]]
    label_N = np.repeat(np.arange(len(names)), [len(texts[name]) for name in names])
    vectorizer, model = new_vectorizer(), new_classifier(seed)
    model.fit(vectorizer.transform([text[:CHARACTERS] for text in documents]), label_N)

    def choose(asked: Sequence[str]) -> list[str]:
        return [names[n] for n in model.predict(vectorizer.transform([text[:CHARACTERS] for text in asked]))]

    return choose


def learn_pairwise(texts: Mapping[str, Sequence[str]], seed: int = 0) -> Choose:
    """A classifier for each domain against public documents; each sees one owner's text and `texts["public"]` alone."""
    names = _checked(texts)
    if PUBLIC not in texts:
        raise InputError("no public text to tell the domains from. Add public to the domains.")
    vectorizer = new_vectorizer()
    public_ND = vectorizer.transform([text[:CHARACTERS] for text in texts[PUBLIC]])
    private = [name for name in names if name != PUBLIC]
    models = [_own_vs_public(vectorizer, public_ND, texts[name], seed) for name in private]

    def choose(asked: Sequence[str]) -> list[str]:
        x_ND = vectorizer.transform([text[:CHARACTERS] for text in asked])
        margins: list[Floats] = [np.zeros(len(asked)), *(model.decision_function(x_ND) for model in models)]
        return [[PUBLIC, *private][n] for n in np.stack(margins).argmax(0)]

    return choose


def measure_chosen(
    members: Sequence[Member],
    text: TokenisedText,
    choose: Choose,
    *,
    advance: Advance = lambda _tokens: None,
    **options: Any,
) -> Measurement:
    """Scores each document with the one member that `choose` names; its `routing` is that choice, of one layer.

    Args:
        members: one for each domain that can be chosen.
        text: the text to score, with its documents.
        choose: a learnt classifier.
        advance: told the tokens scored.
        options: `length` and `batch_tokens` of `measure`.
    """
    assert text.texts is not None, "this text does not hold its documents"
    names = [member.domain for member in members]
    chosen = choose(text.texts)
    if unknown := sorted(set(chosen) - set(names)):
        raise InputError(f"the classifier chose {unknown[0]!r}, which is none of the models: {', '.join(names)}.")
    sums = RouterSums(names, text.domains)
    found = []
    for m, member in enumerate(members):
        which = [n for n, name in enumerate(chosen) if name == member.domain]
        if not which:
            continue
        part = text.part(which)
        with member.enter():
            found.append(measure(member.model, part, advance=advance, **options))
        p_NE = torch.zeros(part.tokens, len(members))
        p_NE[:, m] = 1
        domain_ids = part.domain_ids or [[0] * len(ids) for ids in part.documents]
        sums.add([p_NE], [p_NE > 0], torch.tensor([place for row in domain_ids for place in row], dtype=torch.long))
    return reduce(added, found).with_routing(sums.result() if sums.tokens else None)


def _own_vs_public(vectorizer: Any, public_ND: Any, own: Sequence[str], seed: int) -> Any:
    from scipy.sparse import vstack

    own_ND = vectorizer.transform([text[:CHARACTERS] for text in own])
    is_own = np.arange(own_ND.shape[0] + public_ND.shape[0]) < own_ND.shape[0]
    return new_classifier(seed).fit(vstack([own_ND, public_ND]), is_own)


def _checked(texts: Mapping[str, Sequence[str]]) -> list[str]:
    require_extra()
    if len(texts) < 2 or not all(texts.values()):
        raise InputError(f"a classifier of {', '.join(texts) or 'nothing'}: expected text of two domains at least.")
    return list(texts)
