"""How much of a text can be read back from its attribution: from the router's weights of every token and layer.

`flexo-generate --attribution-out` writes them. An attacker runs the same model on text that anybody has, and then looks
up which of its tokens came with weights like those in the file. Nuriyev and Kulp (arXiv 2602.04105) recover 91 % of
tokens from the choices of experts alone; they train a transformer on 100 million tokens to read them, and their model
has more experts. What is read here is the least that can be.

    summary          what `--attribution-summary` has of the document, the same at every place
    weights          of the place itself
    with neighbours  and of the places around it

The reference is what can be had without any of it: always naming the most frequent tokens.

S places, L layers, E experts, F features of a place, V words of the vocabulary; N places of all documents.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import nn
from transformers import PreTrainedModel

from evals.privacy.attacks.part import Context, Part, Row
from evals.privacy.statistics.detection import bootstrap
from evals.scoring.held_out import Reading
from evals.scoring.measure import LENGTH, hidden_states
from evals.scoring.router_stats import seeing_gates
from evals.scoring.sliding_windows import TokenisedText, batches
from flexo.console import progress
from flexo.errors import InputError
from inference.attribution import Answer, Expert
from inference.router_health import layers_that_choose
from inference.select import manifest_experts
from inference.views.summary import summarise

LEAST = 1e-4  # of a weight, whose logarithm is read
NEIGHBOURS = 1  # places on either side; with 70,000 tokens to learn from, more than one makes it worse
RIDGE = 1e-2
PLACES = 128  # read at once
TEST = 5  # times less text is read back than was learnt from
TOP = (1, 10)
LIKE = 20  # documents with the nearest summaries


@dataclass(frozen=True)
class Traces:
    """What the routers did, document by document."""

    weights: list[torch.Tensor]  # [S, L, E] of each, 0 where an expert was not active
    tokens: list[torch.Tensor]  # [S], what was read there


Ranks = list[torch.Tensor]  # [S] of each document: how many tokens are named before the true one
Read = Callable[[Traces], Ranks]


def run(context: Context) -> list[Row]:
    """The share of tokens read back, in all text and in that of each domain."""
    folder = context.extra.domains
    assert folder is not None, "Part.needs"
    nbytes = {"train": context.extra.max_bytes, "test": max(1, context.extra.max_bytes // TEST)}
    texts = {split: Reading(folder, None, split, most).texts(context.given.tokenizer) for split, most in nbytes.items()}
    total = sum(text.tokens for part in texts.values() for text in part.values())
    with context.target.enter() as model, progress("reading text", total, "tokens") as advance:
        found = {
            split: {domain: traced(model, text, advance) for domain, text in part.items()}
            for split, part in texts.items()
        }
        if empty := [split for split, part in found.items() if not _joined(part.values()).tokens]:
            raise InputError(f"{folder}: no {empty[0]} document of two tokens or more. Give longer text.")
        learnt, words = _joined(found["train"].values()), int(model.config.vocab_size)
        ways: dict[str, Read] = {
            "summary": Summaries(model, learnt, words).ranks,
            "weights": Reader(learnt, 0, words).ranks,
            "with neighbours": Reader(learnt, NEIGHBOURS, words).ranks,
        }
    count_V = torch.cat(learnt.tokens).bincount(minlength=words)
    rows = []
    read_back = {domain: part for domain, part in found["test"].items() if part.tokens}
    for domain, part in {"all": _joined(read_back.values()), **read_back}.items():
        blind = [_ranked(count_V)[token_S] for token_S in part.tokens]
        for way, read in ways.items():
            ranks = read(part)
            for top in TOP:
                share, chance = (_share(one, top, context.settings.seed) for one in (ranks, blind))
                figure = f"tokens read back from {way}, top {top}"
                rows.append(Row("attribution", figure, *share, reference=chance[0], group=domain))
    return rows


class Reader:
    """Names the tokens whose places in the text it has learnt were most like a place.

    Like is what differs little where tokens differ: distances are taken after features were made to vary by one among
    places of the same token, in every direction (the metric of linear discriminant analysis).
    """

    def __init__(self, learnt: Traces, around: int, words: int) -> None:
        """`around` places on either side are looked at, too; there are so many `words` in the vocabulary."""
        self.around, self.words = around, words
        x_NF, self.token_N = self._seen(learnt), torch.cat(learnt.tokens)
        count_V = self.token_N.bincount().clamp(min=1)
        mean_VF = torch.zeros(len(count_V), x_NF.shape[1]).index_add_(0, self.token_N, x_NF) / count_V[:, None]
        within_NF = (x_NF - mean_VF[self.token_N])[count_V[self.token_N] > 1]
        within_FF = within_NF.T @ within_NF / max(1, len(within_NF))
        within_FF += RIDGE * within_FF.diagonal().mean().clamp(min=LEAST) * torch.eye(len(within_FF))
        self.whiten_FF = torch.linalg.cholesky(torch.linalg.inv(within_FF))
        self.x_NF = x_NF @ self.whiten_FF

    def ranks(self, traces: Traces) -> Ranks:
        """Of each place; a token that was never learnt is named last."""
        x_NF, token_N = self._seen(traces) @ self.whiten_FF, torch.cat(traces.tokens)
        found = []
        for x_PF, token_P in zip(torch.split(x_NF, PLACES), torch.split(token_N, PLACES), strict=True):
            away_PN = torch.cdist(x_PF, self.x_NF)
            nearest_PV = torch.full((len(x_PF), self.words), torch.inf)
            nearest_PV.scatter_reduce_(1, self.token_N.expand_as(away_PN), away_PN, "amin")
            own_P1 = nearest_PV.gather(1, token_P[:, None])
            found.append((nearest_PV < own_P1).sum(1).where(own_P1[:, 0].isfinite(), self.words))
        return list(torch.split(torch.cat(found), [len(token_S) for token_S in traces.tokens]))

    def _seen(self, traces: Traces) -> torch.Tensor:
        """The features [N, F] of each place and of those around it; zero before and behind a document."""
        found = []
        for weight_SLE in traces.weights:
            x_SF = weight_SLE.clamp(min=LEAST).log().flatten(1)  # routers are trained by differences of logits
            padded = nn.functional.pad(x_SF, (0, 0, self.around, self.around))
            found.append(torch.cat([padded[n : n + len(x_SF)] for n in range(2 * self.around + 1)], 1))
        return torch.cat(found)


class Summaries:
    """Names the tokens most frequent in documents whose attribution summary is like a document's."""

    def __init__(self, model: PreTrainedModel, learnt: Traces, words: int) -> None:
        whole: Any = model
        self.experts = [Expert(str(entry["domain"]), "", "", "") for entry in manifest_experts(model)]
        self.chooses = layers_that_choose(whole.model.layers)
        self.x_DE, self.tokens, self.words = self._said(learnt), learnt.tokens, words
        self.all_V = torch.cat(learnt.tokens).bincount(minlength=words)

    def ranks(self, traces: Traces) -> Ranks:
        """Of each place; what like documents do not have is named by its frequency in all."""
        found = []
        for x_E, token_S in zip(self._said(traces), traces.tokens, strict=True):
            like = (self.x_DE - x_E).square().sum(1).topk(min(LIKE, len(self.tokens)), largest=False).indices
            count_V = torch.cat([self.tokens[n] for n in like.tolist()]).bincount(minlength=self.words)
            found.append(_ranked(count_V + self.all_V / (self.all_V.sum() + 1))[token_S])
        return found

    def _said(self, traces: Traces) -> torch.Tensor:
        """What the summary of each document says, [D, E + 1]: tokens of each owner, and of others."""
        x_DE = []
        for weight_SLE, token_S in zip(traces.weights, traces.tokens, strict=True):
            said = summarise([Answer(self.experts, token_S.tolist(), weight_SLE.double(), self.chooses)])
            tokens = {one["owner"]: one["tokens"] for one in said["owners"]}
            x_DE.append([*(tokens.get(one.domain, 0) for one in self.experts), said["others"] or 0])
        return torch.tensor(x_DE, dtype=torch.float32)


def _ranked(count_V: torch.Tensor) -> torch.Tensor:
    """The place of each token when the most frequent comes first, [V]."""
    return count_V.argsort(descending=True, stable=True).argsort()


def _joined(parts: Iterable[Traces]) -> Traces:
    """The documents of several texts."""
    pairs = [pair for part in parts for pair in zip(part.weights, part.tokens, strict=True)]
    return Traces([weights for weights, _ in pairs], [tokens for _, tokens in pairs])


def _share(ranks: Sequence[torch.Tensor], top: int, seed: int) -> tuple[float, float, float]:
    """Of places whose token is among the `top` that are taken for likeliest, with an interval over documents."""
    x_D2 = np.array([[float((rank_S < top).sum()), float(len(rank_S))] for rank_S in ranks])
    found = bootstrap(lambda drawn_D2: float(drawn_D2[:, 0].sum() / drawn_D2[:, 1].sum()), x_D2, seed=seed)
    return found.value, found.low, found.high


@torch.inference_mode()
def traced(model: PreTrainedModel, text: TokenisedText, advance: Callable[[float], None]) -> Traces:
    """The weights that an attribution has of each document's first tokens, if they were an answer."""
    whole: Any = model
    seen: dict[int, torch.Tensor] = {}
    gates = [layer.mlp.gate for layer in whole.model.layers]
    found = Traces([], [])

    def see(n: int, logits_NE: torch.Tensor, weight_NK: torch.Tensor, index_NK: torch.Tensor) -> None:
        seen[n] = torch.zeros_like(logits_NE).scatter_(1, index_NK, weight_NK.to(logits_NE.dtype))

    with seeing_gates(gates, see):
        for batch in batches(
            replace(text, documents=[ids[: LENGTH - 1] for ids in text.documents]), LENGTH, device=model.device
        ):
            hidden_states(model, batch.x_BT)
            weight_BTLE = torch.stack([seen[n] for n in range(len(gates))], 1).view(*batch.x_BT.shape, len(gates), -1)
            for x_T, known_T, weight_TLE in zip(batch.x_BT, batch.known_BT, weight_BTLE, strict=True):
                places = known_T.nonzero()[1:-1, 0]  # not the end-of-text token before, nor the last, which has none
                if len(places):
                    found.tokens.append(x_T[places].cpu())
                    found.weights.append(weight_TLE[places].cpu())
            advance(int(batch.known_BT.sum()))
    return found


PART = Part("attribution", ("a merged folder", "--domains"), run, reference="most frequent tokens")
