"""How much an expert gives to those who may use it, in two measures of PermLLM (arXiv 2505.22860, sections 4.1, 4.2).

A *right* to a domain is a selection of the public expert and that domain's.

domain distinguishability   with a right to domain i, training text of i is told from that of another domain j, as a
                            membership attack tells members from non-members: the area under the curve, or the share of
                            i found at 1 % of j; mean over j
utility gap                 how much more of held-out text of i is predicted right, or how many more nats a token costs,
                            with a right to i in place of one to j: mean over j. Below 0 a right makes it worse

High figures say that rights make a difference, so that there is something to guard. They do not say that it is
guarded: `leaving` does.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from evals.privacy.attacks.part import Context, Part, Row
from evals.privacy.attacks.token_scores import score_documents
from evals.privacy.statistics.detection import Floats, auc, found_at
from evals.scoring.held_out import PUBLIC, Reading
from evals.scoring.measure import Measurement, measure
from evals.scoring.sliding_windows import TokenisedText
from flexo.console import progress
from flexo.errors import InputError
from inference.select import select_experts

Losses = dict[str, dict[str, Floats]]  # right -> domain of the text -> nats per token of each document

MEASURES = {
    "distinguishability from others, mean: AUC": auc,
    "distinguishability from others, mean: TPR at 1 % FPR": found_at(0.01),
}
UTILITIES: dict[str, Callable[[Measurement], float]] = {
    "utility gap to other rights, mean: accuracy": lambda found: found.accuracy,
    "utility gap to other rights, mean: nats per token": lambda found: -found.nats_per_token,
}


def run(context: Context) -> list[Row]:
    """Both measures of every expert whose text is there: mean, least and most over j."""
    experts, reading = context.given.experts, context.extra.domains
    assert experts is not None and reading is not None, "Part.needs"
    train, test = (
        Reading(reading, split=split, max_bytes=context.extra.max_bytes).texts(context.given.tokenizer, experts)
        for split in ("train", "test")
    )
    domains = [name for name in experts if name in train and name in test and name != PUBLIC]
    if len(domains) < 2:
        raise InputError(f"{reading}: text of {', '.join(domains) or 'none'} of the experts, expected two at least.")
    losses, utility = _measured(context, domains, train, test)
    rows = []
    for name in domains:
        others = [other for other in domains if other != name]
        for figure, statistic in MEASURES.items():
            for way, score in (("loss", _plain), ("loss less the anchor's", _calibrated)):
                found = [statistic(*score(losses, name, (name, other))) for other in others]
                base = [statistic(*score(losses, PUBLIC, (name, other))) for other in others]
                rows.append(_row(f"{figure}, {way}", found, name, float(np.mean(base))))
        for figure, of in UTILITIES.items():
            gaps = [of(utility[name][name]) - of(utility[other][name]) for other in others]
            rows.append(_row(figure, gaps, name, of(utility[name][name]) - of(utility[PUBLIC][name])))
    return rows


def _measured(
    context: Context, domains: list[str], train: dict[str, TokenisedText], test: dict[str, TokenisedText]
) -> tuple[Losses, dict[str, dict[str, Measurement]]]:
    """Of the right to each domain and to none (public alone), on the text of each."""
    losses: Losses = {}
    utility: dict[str, dict[str, Measurement]] = {}
    total = (1 + len(domains)) * sum(text[name].tokens for text in (train, test) for name in domains)
    with context.target.enter() as model, progress("scoring documents", total, "tokens") as advance:
        for right in (PUBLIC, *domains):
            with select_experts(model, list(dict.fromkeys([PUBLIC, right]))):
                losses[right] = {name: score_documents(model, train[name], advance).loss_S for name in domains}
                utility[right] = {name: measure(model, test[name], advance=advance) for name in domains}
    return losses, utility


def _plain(losses: Losses, right: str, texts: tuple[str, str]) -> list[Floats]:
    return [-losses[right][name] for name in texts]


def _calibrated(losses: Losses, right: str, texts: tuple[str, str]) -> list[Floats]:
    return [losses[PUBLIC][name] - losses[right][name] for name in texts]


def _row(figure: str, values: list[float], domain: str, reference: float) -> Row:
    return Row("access", figure, float(np.mean(values)), min(values), max(values), reference, group=domain)


PART = Part("access", ("a merged folder", "--domains"), run, "range over others", "a right to public alone")
