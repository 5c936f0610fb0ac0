"""Canaries: how much the model tells of secrets that were planted in its text, and what that proves of its training.

Exposure (Carlini et al. 2019, arXiv 1802.08232) is log2 R - log2 rank, where the secret's rank among R - 1 others that
could have been drawn in its place is that of its likelihood. A model that has never seen it gives 1.44 bits in the
mean; log2 R says that no other secret is likelier.

The audit takes the canaries that coins decided about, by their loss less the anchor's, for a lower bound on epsilon.
"""

from __future__ import annotations

import random

import numpy as np

from evals.privacy.attacks.documents import tokenised_by
from evals.privacy.attacks.part import Context, Part, Row
from evals.privacy.attacks.targets import Target
from evals.privacy.attacks.token_scores import Floats, scores
from evals.privacy.statistics.detection import auc, bootstrap
from evals.privacy.statistics.one_run_audit import audit
from flexmix.canaries.manifest import Canary, Manifest
from flexo.console import progress
from flexo.errors import InputError
from merge.formats.expert_file import open_expert

NAME = "canaries"
DELTA = 1e-5


def run(context: Context) -> list[Row]:
    """Exposure by the times that secrets stood in the text; what is told about coins, and the bound on epsilon."""
    assert context.canaries is not None, "Part.needs"
    planted = context.canaries
    if len({one.repeats for one in planted.coins}) == 1:
        raise InputError(
            f"--canaries: all {len(planted.coins)} coins fell on one side. Plant more of them: --coins 1000."
        )
    return (_exposure(context, planted) if planted.secrets else []) + (
        _audit(context, planted.coins) if planted.coins else []
    )


def _exposure(context: Context, planted: Manifest) -> list[Row]:
    rng, secrets, others = random.Random(f"others {context.settings.seed}"), planted.secrets, context.settings.others
    candidates = [(one.before, [one.secret, *(planted.other_secret(rng) for _ in range(others))]) for one in secrets]
    texts = [before + secret for before, drawn in candidates for secret in drawn]
    own_C, anchor_C = (
        exposure(nats_S.reshape(len(secrets), -1)) for nats_S in _nats(context, texts, "ranking secrets")
    )
    repeats_C = np.array([one.repeats for one in secrets])
    rows = []
    for times in np.unique(repeats_C):
        found = bootstrap(_mean, own_C[repeats_C == times], seed=context.settings.seed)
        known = _mean(anchor_C[repeats_C == times])
        figure = f"exposure, at most {np.log2(others + 1):.3g} bits"
        rows.append(Row(NAME, figure, found.value, found.low, found.high, known, f"{times} in the text"))
    return rows


def _audit(context: Context, coins: list[Canary]) -> list[Row]:
    own_M, anchor_M = _nats(context, [one.text for one in coins], "scoring coins")
    score_M, is_in_M = anchor_M - own_M, np.array([one.repeats > 0 for one in coins])
    claimed = open_expert(context.given.path).header.privacy if context.given.kind == "pair" else None
    delta = context.settings.delta
    if delta is None:
        delta = claimed.delta if claimed else DELTA
    found = audit(score_M, is_in_M, delta)
    warning = ""
    if claimed and delta >= claimed.delta and found.epsilon > claimed.epsilon:
        warning = f"the file states an epsilon of {claimed.epsilon:.3g}, and the audit refutes it"
    told = bootstrap(auc, score_M[is_in_M], score_M[~is_in_M], seed=context.settings.seed)
    return [
        Row(NAME, "coins, loss - anchor: AUC", told.value, told.low, told.high, 0.5),
        Row(NAME, f"right of {found.guesses} guesses about {found.canaries} coins", found.right),
        Row(NAME, f"epsilon is at least, with 95 %, at delta {delta:.2g}", found.epsilon, warning=warning),
    ]


def exposure(nats_CR: Floats) -> Floats:
    """Bits [C] of the first of R candidates, from what each costs to encode; ties count half."""
    own_C1 = nats_CR[:, :1]
    rank_C = 1 + (nats_CR[:, 1:] < own_C1).sum(1) + (nats_CR[:, 1:] == own_C1).sum(1) / 2
    bits_C: Floats = np.log2(nats_CR.shape[1]) - np.log2(rank_C)
    return bits_C


def _nats(context: Context, texts: list[str], label: str) -> tuple[Floats, Floats]:
    """What each text costs the model and the anchor to encode, [S] each."""
    text = tokenised_by(context.given.tokenizer, texts)

    def of(target: Target) -> Floats:
        return np.array(scores(target, text, context.scores, advance).nats)

    with progress(label, 2 * text.tokens, "tokens") as advance:
        return of(context.target), of(context.reference)


def _mean(sample_C: Floats) -> float:
    return float(sample_C.mean())


PART = Part(NAME, ("--canaries",), run)
