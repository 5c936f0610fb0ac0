"""Ensembles: every model runs, and their probabilities are averaged.

Branch-Train-Merge (arXiv 2208.03306): the weights are the posterior over models given the tokens before,
`w_m(t) = prior_m * prod_{s<t} p_m(x_s | x_<s)`, normalised. Only the `top_k` heaviest models of a token are kept and
weighted anew.

    Weighing(prefix=0)      the weights at place t of a window come from the prior alone
    Weighing(prefix=31)     ... from the window's first 31 tokens, or all tokens before t where those are fewer
    Weighing(prefix=None)   ... from all tokens of the window before t

Where windows overlap, the repeated tokens count as tokens before t.

    members = [Member("math", math_model), Member("code", code_model)]
    measure_ensemble(members, text, Weighing(top_k=2))

M models, B windows, T places, V vocabulary, N scored tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch.nn import functional as F  # noqa: N812 - the name everyone uses
from transformers import PreTrainedModel

from evals.scoring.measure import LENGTH, Advance, Measurement, chunks, hidden_states, output_layer
from evals.scoring.router_stats import RouterSums
from evals.scoring.sliding_windows import Batch, TokenisedText, batches
from flexo.errors import InputError

PREFIX = 31


@dataclass(frozen=True)
class Member:
    """A model of an ensemble."""

    domain: str
    model: PreTrainedModel
    enter: Callable[[], AbstractContextManager[Any]] = nullcontext  # active while it runs: chooses experts of a merge


@dataclass(frozen=True)
class Weighing:
    """How the models of an ensemble are weighted, see the head of this module."""

    top_k: int | None = None  # models kept for a token; None keeps all
    prefix: int | None = PREFIX  # tokens of a window that its weights come from; None: all before
    prior: Sequence[float] | None = None  # a weight for each model; None: the same for all


@torch.inference_mode()
def measure_ensemble(
    members: Sequence[Member],
    text: TokenisedText,
    weighing: Weighing = Weighing(),
    *,
    length: int = LENGTH,
    batch_tokens: int | None = None,
    advance: Advance = lambda _tokens: None,
) -> Measurement:
    """Scores the same tokens as `measure`, from averaged probabilities.

    The weights over models are reported as a router of one layer: their mass before only the `top_k` are kept, and how
    often the heaviest model is that of the token's domain.

    Args:
        members: at least one; all with the same tokens.
        text: the text to score.
        weighing: how the models are weighted.
        length, batch_tokens, advance: as for `measure`.

    Raises:
        InputError: vocabularies differ, or top_k or prior do not fit the members.
    """
    top_k, prior_M = _check(members, weighing)
    sums = RouterSums([member.domain for member in members], text.domains)
    nats, correct, tokens = 0.0, 0, 0
    for batch in batches(text, length, batch_tokens, members[0].model.device):
        hidden_MBTD = _run(members, batch)
        log_p_MBT = _log_likelihoods(members, hidden_MBTD, batch)
        weight_MN = posterior(log_p_MBT, prior_M, weighing.prefix)[:, batch.predicts_BT]
        kept_MN = _keep_top(weight_MN, top_k)
        next_MN = log_p_MBT.roll(-1, 2)[:, batch.predicts_BT]
        nats -= (kept_MN.log() + next_MN).logsumexp(0).sum().item()
        sums.add([weight_MN.T], [kept_MN.T > 0], batch.domain_N)
        hidden_MND = [hidden_BTD[batch.predicts_BT] for hidden_BTD in hidden_MBTD]
        target_N = batch.target_N
        for part in chunks(len(target_N), output_layer(members[0].model)):
            p_PV = _mixture(members, [hidden_ND[part] for hidden_ND in hidden_MND], kept_MN[:, part])
            correct += int((p_PV.argmax(-1) == target_N[part]).sum())
        tokens += len(target_N)
        advance(len(target_N))
    return Measurement(
        nats, tokens, correct, text.nbytes, passes=float(len(members)), routing=sums.result() if tokens else None
    )


def posterior(log_p_MBT: torch.Tensor, prior_M: torch.Tensor, prefix: int | None) -> torch.Tensor:
    """Weights of models at each place, from the tokens up to it, [M, B, T] in float64.

    `log_p_MBT` is the log-likelihood of the token at each place; zero at a window's first, which is given.
    """
    if prefix is not None:
        log_p_MBT = log_p_MBT.clone()
        log_p_MBT[:, :, prefix + 1 :] = 0
    evidence_MBT = log_p_MBT.double().cumsum(-1)
    return (prior_M.double().log()[:, None, None] + evidence_MBT).softmax(0)


def _check(members: Sequence[Member], weighing: Weighing) -> tuple[int, torch.Tensor]:
    """The number of models kept for a token, and the normalised prior."""
    count, prior = len(members), weighing.prior
    assert count, "an ensemble of nothing"
    vocabularies = {output_layer(member.model).weight.shape[0] for member in members}
    if len(vocabularies) > 1:
        raise InputError(
            f"models of an ensemble have vocabularies of {sorted(vocabularies)} tokens: their probabilities cannot be "
            "averaged. Use models of one anchor."
        )
    top_k = count if weighing.top_k is None else weighing.top_k
    if not 1 <= top_k <= count:
        raise InputError(f"top_k {top_k}: there are {count} models in the ensemble, expected 1 to {count}.")
    given = [1.0] * count if prior is None else list(prior)
    if len(given) != count or min(given) < 0 or not sum(given) > 0:
        raise InputError(f"prior {given}: expected {count} weights, none negative and not all zero.")
    weights = torch.tensor(given, dtype=torch.float64, device=members[0].model.device)
    return top_k, weights / weights.sum()


def _run(members: Sequence[Member], batch: Batch) -> list[torch.Tensor]:
    states = []
    for member in members:
        with member.enter():
            states.append(hidden_states(member.model, batch.x_BT))
    return states


def _log_likelihoods(members: Sequence[Member], hidden_MBTD: list[torch.Tensor], batch: Batch) -> torch.Tensor:
    """Of the token at each place under each model, [M, B, T]; zero at a window's first place and in padding."""
    log_p_MBT = torch.zeros(len(members), *batch.x_BT.shape, dtype=torch.float64, device=batch.x_BT.device)
    known = batch.known_BT[:, 1:]
    target_K = batch.x_BT[:, 1:][known]
    for m, (member, hidden_BTD) in enumerate(zip(members, hidden_MBTD, strict=True)):
        unembed = output_layer(member.model)
        hidden_KD = hidden_BTD[:, :-1][known]
        parts = [
            -F.cross_entropy(unembed(hidden_KD[part]).float(), target_K[part], reduction="none")
            for part in chunks(len(target_K), unembed)
        ]
        if parts:
            log_p_MBT[m, :, 1:][known] = torch.cat(parts).double()
    return log_p_MBT


def _keep_top(weight_MN: torch.Tensor, top_k: int) -> torch.Tensor:
    kept = torch.zeros_like(weight_MN).scatter_(0, weight_MN.topk(top_k, dim=0).indices, 1.0) * weight_MN
    return kept / kept.sum(0)


def _mixture(members: Sequence[Member], hidden_MPD: list[torch.Tensor], weight_MP: torch.Tensor) -> torch.Tensor:
    """Averaged probabilities, [P, V]."""
    P, V = weight_MP.shape[1], output_layer(members[0].model).weight.shape[0]
    p_PV = torch.zeros(P, V, device=weight_MP.device)
    for member, hidden_PD, weight_P in zip(members, hidden_MPD, weight_MP, strict=True):
        kept = weight_P > 0
        logits_KV = output_layer(member.model)(hidden_PD[kept]).float()
        p_PV[kept] += weight_P[kept, None].float() * logits_KV.softmax(-1)
    return p_PV
