"""Measuring all models on all domains, each cell once: what `flexo-eval` does between its options and its table."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

from evals.matrix.measurement_cache import Key, Store
from evals.matrix.model_loader import Given, Shelf
from evals.matrix.results import Cell, DomainText, Results
from evals.matrix.variants import Asked, Bench, Row, classifier_rows, ensemble_row, rows_of
from evals.scoring.held_out import documents_digest, find_domains, read_pieces, read_texts
from evals.scoring.measure import Advance, Measurement
from evals.scoring.mixed_text import mixed_texts
from evals.scoring.sliding_windows import TokenisedText
from flexmix.tokens.encoder import load_tokenizer
from flexo.console import progress
from flexo.errors import InputError

SOFTWARE = ("flexo", "torch", "transformers")
Texts = dict[str, TokenisedText]


@dataclass(frozen=True)
class Reading:
    """Which text is read."""

    data: Path
    domains: Sequence[str] | None  # None: those of the experts
    split: str
    max_bytes: int  # a domain

    def learning(self, nbytes: int) -> dict[str, list[str]]:
        """Training documents of every domain that has some."""
        files = find_domains(self.data, None, [], "train")
        return {domain: read_pieces(path, nbytes, "train") for domain, path in files.items()}


def read_domains(given: Sequence[Given], reading: Reading, mixed: int | None) -> Texts:
    """The text of each domain, tokenised.

    Args:
        given: the models; without names in `reading`, their experts' domains are read.
        reading: what to read.
        mixed: tokens of a window of mixed text, as much of each kind as a domain has; None makes none.
    """
    known = list(dict.fromkeys(name for model in given for name in model.experts or ()))
    folder = given[0].tokenizer
    files = find_domains(reading.data, reading.domains, known, reading.split)
    texts = read_texts(files, folder, reading.max_bytes, reading.split)
    if mixed is not None:
        tokens = sum(text.tokens for text in texts.values())
        windows = max(1, tokens // len(texts) // mixed)
        texts |= mixed_texts(texts, load_tokenizer(folder)[0], windows=windows, length=mixed)
    return texts


def measure_all(
    given: Sequence[Given],
    texts: Texts,
    shelf: Shelf,
    asked: Asked,
    reading: Reading,
    *,
    length: int,
    btm: int | None = None,
    learning: Mapping[str, Sequence[str]] | None = None,
    cache: Path | None = None,
    seed: int | None = None,
) -> Results:
    """Measures every row on every text, or finds that it has been.

    Args:
        given: the models.
        texts: domain -> text.
        shelf: what loads the models.
        asked: which variants of merged models are rows of their own.
        reading: where the text is from, for the results' head.
        length: tokens in a window.
        btm: adds the ensemble of the dense models, so many of them for a token.
        learning: adds classifiers that learn from these documents of each domain.
        cache: a folder in which every measurement is kept as soon as it is made.
        seed: a label of the results.
    """
    with progress("reading models", sum(model.nbytes for model in given)) as advance:
        bench = Bench(shelf, shelf.digests(given, advance), length)
    rows = rows_of(given, bench, asked)
    if btm is not None:
        rows.append(ensemble_row(given, bench, btm))
    if learning is not None:
        rows += classifier_rows(given, bench, learning)
    for name, count in Counter(row.about.name for row in rows).items():
        if count > 1:
            raise InputError(f"{name}: {count} rows of that name. Name the models so that they differ: NAME=PATH.")
    store = Store(cache)
    digests = {domain: text.digest for domain, text in texts.items()}
    todo = [
        (row, domain, key) for row in rows for domain in texts if store.find(key := _key(row, digests[domain])) is None
    ]
    with progress("scoring", sum(row.passes * texts[domain].tokens for row, domain, _ in todo), "tokens") as advance:
        for row, domain, key in todo:
            if store.find(key) is None:  # rows may be the same model, as top-8 of eight experts is all of them
                store.keep(key, row.score(texts[domain], _times(advance, row.passes)))
            else:
                advance(row.passes * texts[domain].tokens)
    cells = [
        Cell.of(row.about.name, domain, _found(store, _key(row, digests[domain]))) for row in rows for domain in texts
    ]
    return Results(
        seed=seed,
        split=reading.split,
        max_bytes=reading.max_bytes,
        software={name: version(name) for name in SOFTWARE},
        domains=[_about(domain, text) for domain, text in texts.items()],
        models=[row.about for row in rows],
        cells=cells,
    )


def _key(row: Row, digest: str) -> Key:
    return {**row.key, "text": digest}


def _found(store: Store, key: Key) -> Measurement:
    found = store.find(key)
    assert found is not None, "a cell was not measured"
    return found


def _times(advance: Advance, passes: int) -> Advance:
    return lambda tokens: advance(passes * tokens)


def _about(domain: str, text: TokenisedText) -> DomainText:
    assert text.texts is not None
    return DomainText(domain, len(text.documents), text.nbytes, text.tokens, documents_digest(text.texts))
