"""The rows of a results table: each model, and its variants with other experts or another number of active ones.

active    `model top-2`           all experts, two active for a token
opt-out   `model without math`    as if it had been merged without that expert
growing   `model with 3 experts`  the first three of the manifest, public included
pairs     `pair math`             public and one expert, and `anchor`: public alone
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from functools import cache, partial
from typing import Any

from evals.matrix.measurement_cache import Key
from evals.matrix.model_loader import Given, Shelf, plan_pairs
from evals.matrix.results import ModelRow, Variant
from evals.scoring.classifier import Choose, learn_pairwise, learn_pooled, measure_chosen
from evals.scoring.ensemble import Member, Weighing, measure_ensemble
from evals.scoring.held_out import PUBLIC, documents_digest
from evals.scoring.measure import Advance, Measurement, measure
from evals.scoring.sliding_windows import TokenisedText
from flexo.errors import InputError
from inference.select import select_experts
from merge.planning.merge_plan import Plan

Score = Callable[[TokenisedText, Advance], Measurement]


@dataclass(frozen=True)
class Row:
    """One row of the matrix: how to score it, and its cache key without the text."""

    about: ModelRow
    key: Key
    score: Score
    passes: int = 1  # models that run for a token; the progress bar counts them


@dataclass(frozen=True)
class Extras:
    """Rows and columns of the table beside each model on each domain."""

    active: tuple[int, ...] = ()  # rows: merged models with so many active experts
    opt_out: bool = False  # rows: merged models without each of their experts
    growing: bool = False  # rows: merged models with their first expert, their first two, and so on
    pairs: bool | None = None  # rows: the anchor and each pair of a merged model; None: if it is the only model
    btm: int | None = None  # a row: the ensemble of the dense models, so many of them for a token
    classifier: bool = False  # rows: one expert for a whole document, chosen by its words
    mixed: bool = False  # columns: text whose domain changes, and text that blends two domains
    credit: bool = False  # what each owner adds to merged models; no rows, but `Results.credits`
    permutations: int = 32  # of `credit`: orders of joining that are sampled if there are nine owners or more


@dataclass(frozen=True)
class Bench:
    """All that the rows of one table share."""

    shelf: Shelf
    digests: Mapping[str, str]  # name of a given model -> digest
    length: int  # tokens in a window

    def key(self, given: Sequence[Given], **how: Any) -> Key:
        models = [self.digests[model.name] for model in given]
        return {"models": models, "length": self.length, "dtype": self.shelf.dtype} | how


def rows_of(given: Sequence[Given], bench: Bench, extras: Extras) -> list[Row]:
    """A row for every model in the order given, the anchor first, each with its variants after it.

    Raises:
        InputError: an expert file does not belong to its anchor, or no model has the experts that a variant needs.
    """
    merged = [model for model in given if model.experts]
    chooses = extras.active or extras.opt_out or extras.growing or extras.pairs or extras.credit
    if chooses and not merged:
        raise InputError(
            "--active, --opt-out, --growing, --pairs and --credit choose among experts. Give a merged folder, too."
        )
    for number in extras.active:
        if not any(1 <= number <= len(model.experts or ()) for model in merged):
            raise InputError(f"--active {number}: no model here has so many experts.")
    if extras.pairs and not any(model.holds_anchor for model in merged):
        raise InputError(
            "--pairs: no merged folder here was made of expert files. Only such a folder holds the anchor unchanged."
        )
    rows = [row for model in given for row in _rows_of_one(model, bench, extras, len(merged) == 1)]
    if extras.pairs and not any(row.about.kind == "anchor" for row in rows):
        holder = next(model for model in merged if model.holds_anchor)
        rows.insert(0, replace(chosen_row(holder, bench, "anchor", [PUBLIC], 1), about=ModelRow("anchor", "anchor")))
    return rows


def _rows_of_one(model: Given, bench: Bench, extras: Extras, only: bool) -> list[Row]:
    if model.kind == "pair":
        return [_pair(model, bench)]
    if model.experts is None:
        about = ModelRow(model.name, model.kind, active=model.active)
        return [Row(about, bench.key([model], experts=None, active=None), _whole(model, bench))]
    experts, active = model.experts, model.active or 1
    row = partial(chosen_row, model, bench)
    own = row(model.name, experts, active)
    rows = [replace(own, about=replace(own.about, of=None))]
    if extras.pairs and model.holds_anchor:
        prefix = "" if only else f"{model.name} "
        pairs = [row(f"{prefix}pair {name}", [PUBLIC, name], 2) for name in experts[1:]]
        rows = [replace(pair, about=replace(pair.about, kind="pair", of=None)) for pair in pairs] + rows
    for number in extras.active:
        if number <= len(experts):
            rows.append(row(f"{model.name} top-{number}", experts, number, "active"))
    for name in experts[1:] if extras.opt_out else []:
        rest = [expert for expert in experts if expert != name]
        rows.append(row(f"{model.name} without {name}", rest, min(active, len(rest)), "opt-out"))
    for number in range(1, len(experts) + 1) if extras.growing else []:
        name = f"{model.name} with {number} expert{'s' if number > 1 else ''}"
        rows.append(row(name, experts[:number], min(active, number), "growing"))
    return rows


def _whole(model: Given, bench: Bench) -> Score:
    def score(text: TokenisedText, advance: Advance) -> Measurement:
        (loaded,) = bench.shelf.models([model.path])
        return measure(loaded, text, length=bench.length, advance=advance)

    return score


def chosen_row(
    model: Given, bench: Bench, name: str, experts: list[str], active: int, variant: Variant | None = None
) -> Row:
    """Some or all experts of a merged folder, `active` of them for a token."""

    def score(text: TokenisedText, advance: Advance) -> Measurement:
        (loaded,) = bench.shelf.models([model.path])
        as_it_is = experts == model.experts and active == model.active
        with nullcontext() if as_it_is else select_experts(loaded, experts, active):
            return measure(loaded, text, experts=experts, length=bench.length, advance=advance)

    about = ModelRow(name, "merged", model.name, variant, experts, active)
    return Row(about, bench.key([model], experts=experts, active=active), score)


def _pair(model: Given, bench: Bench) -> Row:
    made, experts = plan_pairs([model]), [PUBLIC, model.domain]

    def score(text: TokenisedText, advance: Advance) -> Measurement:
        return measure(bench.shelf.merged(made), text, experts=experts, length=bench.length, advance=advance)

    about = ModelRow(model.name, "pair", experts=experts, active=2)
    return Row(about, bench.key([model], anchor=made.base.about["digest"], experts=experts, active=2), score)


def ensemble_row(given: Sequence[Given], bench: Bench, top_k: int) -> Row:
    """Branch-Train-Merge over the dense specialists and the anchor; see `evals.scoring.ensemble`."""
    members = [model for model in given if model.kind in ("anchor", "dense") and not model.averaged]
    if not any(model.kind == "dense" for model in members) or not 1 <= top_k <= len(members):
        raise InputError(
            f"--btm {top_k}: {len(members)} dense models here, expected {max(top_k, 2)} or more, the anchor included."
        )

    def score(text: TokenisedText, advance: Advance) -> Measurement:
        loaded = bench.shelf.models([model.path for model in members])
        named = [Member(model.domain, it) for model, it in zip(members, loaded, strict=True)]
        return measure_ensemble(named, text, Weighing(top_k), length=bench.length, advance=advance)

    names = [model.domain for model in members]
    about = ModelRow(f"BTM top-{top_k}", "ensemble", experts=names, active=top_k)
    return Row(about, bench.key(members, how="btm", experts=names, active=top_k), score, len(members))


def classifier_rows(given: Sequence[Given], bench: Bench, learning: Mapping[str, Sequence[str]]) -> list[Row]:
    """Two rows in which a classifier of words sends each document to one expert; it learns from training text.

    Args:
        given: it chooses among the pairs, or, if there is none, among the experts of the first merged folder.
        bench: what the rows of this table share.
        learning: domain -> documents to learn from; public must be among them.

    Raises:
        InputError: there are no experts, or no training text of their domains.
    """
    pairs = [model for model in given if model.kind == "pair"]
    merged = next((model for model in given if model.experts), None)
    if not pairs and merged is None:
        raise InputError("--classifier chooses among experts. Give expert files or a merged folder, too.")
    used = pairs or [model for model in [merged] if model]
    names = [PUBLIC, *(pair.domain for pair in pairs)] if pairs else list(used[0].experts or ())
    if missing := [name for name in names if not learning.get(name)]:
        raise InputError(f"--classifier: no training text of {missing[0]!r} to learn from. Add it to --data.")
    texts = {name: learning[name] for name in names}
    digest = documents_digest(text for name in names for text in (name, *texts[name]))
    made = plan_pairs(pairs) if pairs else None
    rows = []
    for how, learn in (("pairwise", learn_pairwise), ("pooled", learn_pooled)):
        about = ModelRow(f"classifier, {how}", "classifier", experts=names, active=2)
        key = bench.key(used, how=f"classifier {how}", learnt=digest, experts=names)
        rows.append(Row(about, key, _classified(used[0], made, names, bench, cache(partial(learn, texts)))))
    return rows


def _classified(
    merged: Given, made: Plan | None, names: Sequence[str], bench: Bench, choose: Callable[[], Choose]
) -> Score:
    sets = {name: [PUBLIC] if name == PUBLIC else [PUBLIC, name] for name in names}

    def score(text: TokenisedText, advance: Advance) -> Measurement:
        loaded = bench.shelf.models([merged.path])[0] if made is None else bench.shelf.merged(made)
        members = [Member(name, loaded, partial(select_experts, loaded, sets[name], len(sets[name]))) for name in names]
        return measure_chosen(members, text, choose(), length=bench.length, advance=advance)

    return score
