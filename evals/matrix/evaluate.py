"""Measuring models on domains, each cell once: `flexo-eval` as a plain function.

results = evaluate(["anchor/", "ours=model/"], Reading(Path("data/corpora")), extras=Extras(opt_out=True))
print(matrix_table(results))
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from evals.matrix.credit_rows import credit_games
from evals.matrix.measurement_cache import Key, Store
from evals.matrix.model_loader import Given, new_shelf, read_given
from evals.matrix.results import Cell, DomainText, Results
from evals.matrix.variants import Bench, Extras, Row, classifier_rows, ensemble_row, rows_of
from evals.scoring.held_out import Reading, documents_digest
from evals.scoring.measure import LENGTH, Advance, Measurement
from evals.scoring.mixed_text import mixed_texts
from evals.scoring.sliding_windows import TokenisedText
from flexmix.tokens.encoder import load_tokenizer
from flexo.console import progress
from flexo.errors import InputError
from flexo.model_config import position_limit
from flexo.rooms import versions

SOFTWARE = ("flexo", "torch", "transformers")
LEARNING = 1_000_000  # bytes of training text that a classifier learns from, a domain

Texts = Mapping[str, TokenisedText]  # domain -> text


@dataclass(frozen=True)
class Scoring:
    """How models are run, and where measurements are kept."""

    length: int | None = None  # tokens in a window; None: 256, or as many as all models take
    dtype: str = "auto"  # as in `load_model`
    device: str = "auto"
    cache: Path | None = None  # a folder: every measurement is kept there as soon as it is made, and found there


def evaluate(
    models: Sequence[str],
    reading: Reading,
    *,
    anchor: Path | None = None,
    extras: Extras = Extras(),
    scoring: Scoring = Scoring(),
    seed: int | None = None,
) -> Results:
    """Measures every model on every domain.

    Args:
        models: `PATH` or `NAME=PATH`: merged folders, plain models such as an anchor, and expert files.
        reading: the text.
        anchor: the model that the others are compared with and that expert files belong to; None: the first plain
            model that holds what owners share.
        extras: rows and columns to measure beside those.
        scoring: how models are run.
        seed: a label of the results: the seed of the study that the models are from.

    Raises:
        InputError: a path holds no model, models do not go together, or there is no such text.
    """
    given = read_given(models, anchor)
    length = _length(given, scoring.length)
    texts = read_domains(given, reading, length if extras.mixed else None)
    alone = len(given) == 1 and bool(given[0].experts)
    if alone and "=" not in models[0] and not (extras.active or extras.opt_out or extras.growing):
        given = [given[0].renamed("merged")]
    if extras.pairs is None:
        extras = replace(extras, pairs=alone and given[0].holds_anchor)
    with new_shelf(scoring.dtype, scoring.device) as shelf:
        with progress("reading models", sum(model.nbytes for model in given)) as advance:
            bench = Bench(shelf, shelf.digests(given, advance), length)
        rows = _rows(given, bench, extras, reading)
        games = credit_games(given, bench, extras.permutations) if extras.credit else []
        store = Store(scoring.cache, Measurement)
        measure_rows([*rows, *(row for game in games for row in game.rows.values())], texts, store)
    return Results(
        seed=seed,
        split=reading.split,
        max_bytes=reading.max_bytes,
        software=versions(SOFTWARE),
        domains=[_about(domain, text) for domain, text in texts.items()],
        models=[row.about for row in rows],
        cells=[Cell.of(row.about.name, name, measured(row, texts[name], store)) for row in rows for name in texts],
        credits=[game.credit(texts, lambda row, text: measured(row, text, store)) for game in games],
    )


def read_domains(given: Sequence[Given], reading: Reading, mixed: int | None = None) -> dict[str, TokenisedText]:
    """The text of each domain, tokenised.

    Args:
        given: the models; if `reading` names no domains, those of their experts are read.
        reading: the text to read.
        mixed: tokens in a window of mixed text, which is added, as much of each kind as a domain has in the mean; None
            adds none.
    """
    experts = list(dict.fromkeys(name for model in given for name in model.experts or ()))
    texts = reading.texts(given[0].tokenizer, experts)
    if mixed is not None:
        tokens = sum(text.tokens for text in texts.values())
        windows = max(1, tokens // len(texts) // mixed)
        texts |= mixed_texts(texts, load_tokenizer(given[0].tokenizer)[0], windows=windows, length=mixed)
    return texts


def measure_rows(rows: Sequence[Row], texts: Texts, store: Store[Measurement]) -> None:
    """Measures every row on every text; `store` gives those it has, and holds all of them afterwards."""
    todo = [(row, text) for row in rows for text in texts.values() if store.find(_key(row, text)) is None]
    with progress("scoring", sum(row.passes * text.tokens for row, text in todo), "tokens") as advance:
        for row, text in todo:
            key = _key(row, text)
            if store.find(key) is None:  # rows may be the same model, as top-8 of eight experts is all of them
                store.keep(key, row.score(text, _times(advance, row.passes)))
            else:
                advance(row.passes * text.tokens)


def measured(row: Row, text: TokenisedText, store: Store[Measurement]) -> Measurement:
    """The measurement that `measure_rows` left in `store`."""
    found = store.find(_key(row, text))
    assert found is not None, "a cell was not measured"
    return found


def _rows(given: Sequence[Given], bench: Bench, extras: Extras, reading: Reading) -> list[Row]:
    rows = rows_of(given, bench, extras)
    if extras.btm is not None:
        rows.append(ensemble_row(given, bench, extras.btm))
    if extras.classifier:
        training = replace(reading, domains=None, split="train", max_bytes=LEARNING)
        rows += classifier_rows(given, bench, training.documents(given[0].tokenizer))
    for name, count in Counter(row.about.name for row in rows).items():
        if count > 1:
            raise InputError(f"{name}: {count} rows would have this name. Give the models other names: NAME=PATH.")
    return rows


def _length(given: Sequence[Given], length: int | None) -> int:
    """Tokens in a window that all models take."""
    limit = min(position_limit(model.config.get("max_position_embeddings", LENGTH)) for model in given)
    length = length or int(min(LENGTH, limit))
    if length > limit:
        raise InputError(f"--length {length}: these models were made for at most {limit} tokens.")
    return length


def _key(row: Row, text: TokenisedText) -> Key:
    return {**row.key, "text": text.digest}


def _times(advance: Advance, passes: int) -> Advance:
    return lambda tokens: advance(passes * tokens)


def _about(domain: str, text: TokenisedText) -> DomainText:
    assert text.texts is not None, "held-out text holds its documents"
    return DomainText(domain, len(text.documents), text.nbytes, text.tokens, documents_digest(text.texts))
