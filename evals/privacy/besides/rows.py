"""What router rows alone tell about guessed text, and what each further thing that an owner may ship adds.

The attacker has the anchor and guesses documents. Each thing gives every document a score:

    header      how near the anchor's loss comes to the loss on own held-out text that the header states
    rows        margin of the row over the public one, at the document's mean router input; sum over layers
    embedding   the linear discriminant of its moments against public text: what rows start from; sum over layers
    proxies     a classifier of words that tells the chosen public documents from all others
    expert      how much smaller the loss is than the anchor's

Two questions: was a document trained on, or is it another of its source; and is it of the domain, or of another one?
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import numpy as np
import torch
from transformers import PreTrainedModel

from evals.privacy.attacks.documents import tokenised_by
from evals.privacy.attacks.part import Context, Part, Row
from evals.privacy.attacks.token_scores import Floats, scores
from evals.privacy.statistics.detection import auc, bootstrap
from evals.scoring.held_out import PUBLIC, Reading
from evals.scoring.measure import LENGTH, hidden_states
from evals.scoring.sliding_windows import TokenisedText, batches
from flexmix.documents.corpus import find_split, read_documents
from flexmix.domains.embedding import read_embedding
from flexmix.domains.moments import Moments
from flexmix.domains.proxy_selection import CHARACTERS, new_classifier, new_vectorizer, require_extra
from flexo.console import Advance, progress
from flexo.errors import InputError
from merge.formats.anchor_folder import Anchor, open_anchor
from merge.formats.expert_file import ExpertFile, open_expert
from merge.planning.router_screening import folded_row
from trainers.router.row_init import discriminant, public_moments, seeing_router_inputs

MEMBER = "AUC, trained on or another of its source"
DOMAIN = "AUC, of the domain or of another"
WITH = "AUC, trained on or not, with the expert's loss as well"
SHRINKAGE = 0.01  # of a discriminant's covariance, as in training


@dataclass(frozen=True)
class Guess:
    """Guessed documents, and what the anchor makes of them. S documents, L layers, D hidden size."""

    text: TokenisedText
    loss_S: Floats  # noqa: N815 - suffixes are shapes
    mean_SLD: torch.Tensor  # noqa: N815 - suffixes are shapes; of the router input, float64


Score = Callable[[Guess], Floats]


def run(context: Context) -> list[Row]:
    """Both questions for everything that is there; then whether it adds anything to the expert's own loss."""
    assert context.members is not None and context.non_members is not None, "Part.needs"
    assert context.given.anchor is not None, "an expert file has one"
    expert, anchor = open_expert(context.given.path), open_anchor(context.given.anchor)
    texts = {"members": context.members.text, "others": context.non_members.text} | _domains(context, expert)
    with progress("scoring documents", 3 * sum(text.tokens for text in texts.values()), "tokens") as advance:
        guesses = {name: _guess(context, text, advance) for name, text in texts.items()}
        own = {
            name: guess.loss_S - scores(context.target, guess.text, context.scores, advance).loss_S
            for name, guess in guesses.items()
        }
    found = {
        thing: {name: score(guess) for name, guess in guesses.items()}
        for thing, score in _things(context, expert, anchor).items()
    }
    rows = []
    for thing, score in {**found, "expert": own}.items():
        rows.append(_row(MEMBER, thing, score["members"], score["others"]))
        if "domains" in score:
            rows.append(_row(DOMAIN, thing, score["others"], score["domains"]))
    known = auc(own["members"], own["others"])
    for thing, score in found.items():
        both = [np.stack([own[name], score[name]], 1) for name in ("members", "others")]
        rows.append(replace(_row(WITH, thing, *_discriminated(*both)), reference=known))
    return rows


def _things(context: Context, expert: ExpertFile, anchor: Anchor) -> Mapping[str, Score]:
    """A score for each thing that the owner has shipped beside the expert's weights."""
    layers = range(anchor.architecture.num_hidden_layers)
    stated = expert.header.training.losses.own_before
    found: dict[str, Score] = {}
    if stated is not None:
        found["header"] = lambda guess: -np.abs(guess.loss_S - stated)
    row_LD = torch.stack([torch.from_numpy(folded_row(anchor, expert, n)) - anchor.public_row(n) for n in layers])
    found["rows"] = _linear(row_LD)
    if context.extra.embedding is not None:
        found["embedding"] = _linear(_starts(context, anchor))
    if context.extra.proxies is not None:
        found["proxies"] = _like_proxies(context, anchor)
    return found


def _linear(weight_LD: torch.Tensor) -> Score:
    """Constants do not change an order, and are left out."""
    return lambda guess: np.asarray((guess.mean_SLD * weight_LD.double()).sum((1, 2)))


def _starts(context: Context, anchor: Anchor) -> torch.Tensor:
    path = context.extra.embedding
    assert path is not None, "asked for where there is one"
    embedding = read_embedding(path)
    if embedding.model != anchor.digest or embedding.second_LDD is None:
        raise InputError(
            f"{path}: not moments of this anchor's router input. Make them with flexo-embed TEXT --anchor "
            f"{anchor.folder}, without --means-only."
        )
    weights = []
    for n, (mean_D, second_DD) in enumerate(zip(embedding.mean_LD, embedding.second_LDD, strict=True)):
        public = public_moments(anchor, n, "the discriminant of an embedding")
        weights.append(discriminant(Moments.of(mean_D, second_DD), public, SHRINKAGE)[0])
    return torch.stack(weights)


def _like_proxies(context: Context, anchor: Anchor) -> Score:
    """A classifier of the public documents that the owner has chosen against those that it has not."""
    require_extra()
    path = context.extra.proxies
    assert path is not None, "asked for where there is one"
    chosen = set(read_documents(path))
    left = [text for text in read_documents(find_split(anchor.reference, "train")) if text not in chosen]
    if not chosen or not left:
        raise InputError(
            f"{path}: {len(chosen)} documents, which leave {len(left)} of the anchor's public text. Expected some "
            "of its public documents, as flexo-data proxies writes them."
        )
    texts = [text[:CHARACTERS] for text in (*chosen, *left)]
    model, vectorizer = new_classifier(context.settings.seed), new_vectorizer()
    model.fit(vectorizer.transform(texts), np.arange(len(texts)) < len(chosen))

    def score(guess: Guess) -> Floats:
        assert guess.text.texts is not None, "guesses hold their documents"
        return np.asarray(
            model.decision_function(vectorizer.transform([text[:CHARACTERS] for text in guess.text.texts]))
        )

    return score


def _domains(context: Context, expert: ExpertFile) -> dict[str, TokenisedText]:
    """Held-out text of all other domains, if there is a folder of them."""
    folder = context.extra.domains
    if folder is None:
        return {}
    read = Reading(folder, max_bytes=context.extra.max_bytes).documents(context.given.tokenizer)
    texts = [text for domain, part in read.items() if domain not in (expert.domain, PUBLIC) for text in part]
    if not texts:
        raise InputError(f"{folder}: no text of a domain beside {expert.domain}. Give corpora of others, too.")
    return {"domains": tokenised_by(context.given.tokenizer, texts)}


def _guess(context: Context, text: TokenisedText, advance: Advance) -> Guess:
    loss_S = scores(context.reference, text, context.scores, advance).loss_S
    with context.reference.enter() as model:
        mean_SLD = mean_inputs(model, text)
    advance(text.tokens)
    return Guess(text, loss_S, mean_SLD)


@torch.inference_mode()
def mean_inputs(model: PreTrainedModel, text: TokenisedText) -> torch.Tensor:
    """The mean router input [S, L, D] of each document's first window."""
    seen: dict[int, torch.Tensor] = {}
    config = model.config
    mean_SLD = torch.zeros(len(text.documents), config.num_hidden_layers, config.hidden_size, dtype=torch.float64)
    documents = [ids[: LENGTH - 1] for ids in text.documents]
    numbered = replace(text, documents=documents, domain_ids=[[n] * len(ids) for n, ids in enumerate(documents)])
    with seeing_router_inputs(model, seen.__setitem__):
        for batch in batches(numbered, LENGTH, device=model.device):
            hidden_states(model, batch.x_BT)
            for n in seen:
                x_ND = seen[n][batch.predicts_BT].double().cpu()
                mean_SLD[:, n].index_add_(0, batch.domain_N.cpu(), x_ND)
    return mean_SLD / torch.tensor([max(1, len(ids)) for ids in documents])[:, None, None]


def _discriminated(member_N2: Floats, other_M2: Floats) -> list[Floats]:
    """Scores by the linear discriminant of both features, each half of the documents by that of the other half."""
    found = [np.zeros(len(member_N2)), np.zeros(len(other_M2))]
    for half in (0, 1):
        known = [x_S2[1 - half :: 2] for x_S2 in (member_N2, other_M2)]
        means = [x_S2.mean(0) for x_S2 in known]
        within = sum(np.cov(x_S2.T) for x_S2 in known) / 2
        w_2 = np.linalg.solve(within + 1e-9 * np.trace(within) * np.eye(2), means[0] - means[1])
        for place, x_S2 in enumerate((member_N2, other_M2)):
            found[place][half::2] = (x_S2[half::2] - sum(means) / 2) @ w_2
    return found


def _row(figure: str, thing: str, yes: Floats, no: Floats) -> Row:
    found = bootstrap(auc, yes, no)
    return Row("rows", figure, found.value, found.low, found.high, group=thing)


PART = Part("rows", ("--source", "an expert file"), run, reference="expert's loss alone")
