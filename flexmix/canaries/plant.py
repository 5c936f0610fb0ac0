"""Plants canaries in a copy of a text: `flexo-data canaries`. The text itself is never written to.

manifest = plant(Path("notes.csv"), Path("copy.jsonl.gz"), Path("canaries.json"), Planting(coins=1000))
"""

from __future__ import annotations

import gzip
import json
import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from flexmix.canaries.manifest import Canary, Manifest, draw_canaries
from flexmix.documents.corpus import require_text, training_text
from flexmix.documents.reading import read_all
from flexmix.documents.source import TEXT, Row, Source
from flexmix.documents.source.columns import no_column
from flexmix.tokens.shard import is_shard, shard_texts
from flexo.atomic_files import new_file
from flexo.console import Advance, progress
from flexo.errors import InputError

LETTERS, LEAST_WORDS, MOST_WORDS = 3, 8, 4096  # of the words that canaries are made of


@dataclass(frozen=True)
class Planting:
    """What is planted."""

    repeats: tuple[int, ...] = (1, 2, 4, 8, 16)  # how often a secret stands in the copy
    each: int = 10  # secrets for each of them
    coins: int = 0  # canaries that stand there once or not at all, by a fair coin each
    unit: str | None = None  # a column of the text; all copies of a canary get one value of their own in it
    text: str = TEXT  # the column of text
    model: Path | None = None  # whose tokenizer made the text, if it is a token shard
    seed: int | None = None  # None: nobody can draw the same again

    def __post_init__(self) -> None:
        if min(self.repeats, default=1) < 1 or self.each < 1 or self.coins < 0 or not (self.repeats or self.coins):
            raise InputError(
                f"canaries: repeats {self.repeats}, {self.each} of each, {self.coins} coins. Expected repeats from 1 "
                "on, at least one secret for each, and a number of coins from 0 on; one of both at least."
            )


def plant(source: Path, output: Path, manifest: Path, planting: Planting) -> Manifest:
    """Writes a copy of a text with canaries at random places, as JSON lines, and their manifest.

    Args:
        source: in any form that `flexo-data prepare` reads, or a token shard, or a folder with `train` in it.
        output: the copy, `.jsonl` or `.jsonl.gz`, outside of `source`.
        manifest: the file that says what was planted; for its owner alone to read.
        planting: what.

    Raises:
        InputError: an output exists already or lies in the text, or the text cannot be read.
    """
    require_text(source)
    for path in (output, manifest):
        if source.resolve() in (path.resolve(), *path.resolve().parents):
            raise InputError(
                f"{path}: this is in the text itself, which stays as it is. Choose a place outside {source}."
            )
    if output.resolve() == manifest.resolve() or not output.name.endswith((".jsonl", ".jsonl.gz")):
        raise InputError(f"{output}: expected a file of its own whose name ends with .jsonl or .jsonl.gz.")
    place, rng = training_text(source), random.SystemRandom() if planting.seed is None else random.Random(planting.seed)
    with new_file(output) as partial, new_file(manifest) as said:
        count, words = _count(place, planting)
        repeats = [times for times in planting.repeats for _ in range(planting.each)]
        made = Manifest(words, draw_canaries(words, repeats, planting.coins, rng), planting.unit)
        rows = [_row(n, canary, planting.unit) for n, canary in enumerate(made.canaries) for _ in range(canary.repeats)]
        rng.shuffle(rows)
        before: dict[int, list[Row]] = {}  # the number of a document, or their count, and what comes in front of it
        for row in rows:
            before.setdefault(rng.randint(0, count), []).append(row)
        opened = gzip.open if output.name.endswith(".gz") else open
        with (
            progress("planting canaries", count, "documents") as advance,
            opened(partial, "wt", encoding="utf-8") as file,
        ):
            for row in _mixed((row for _, row in _documents(place, planting)), before, advance):
                file.write(json.dumps(row, ensure_ascii=False, default=str) + "\n")
        made.write(said)
    return made


def _count(place: Path, planting: Planting) -> tuple[int, tuple[str, ...]]:
    """How many documents there are, and different words of them, the first `MOST_WORDS`."""
    count, words = 0, set[str]()
    for text, _ in _documents(place, planting):
        count += 1
        if len(words) < MOST_WORDS:
            words |= {word for word in text.split() if word.isalpha() and len(word) >= LETTERS}
    if len(words) < LEAST_WORDS:
        raise InputError(
            f"{place}: {count} documents with text and {len(words)} different words of {LETTERS} letters or more, "
            f"expected {LEAST_WORDS} to make canaries of. Is it the right file?"
        )
    return count, tuple(sorted(words))


def _mixed(rows: Iterator[Row], before: Mapping[int, Sequence[Row]], advance: Advance) -> Iterator[Row]:
    n = 0
    for row in rows:
        yield from before.get(n, ())
        yield row
        n += 1
        advance(1)
    yield from before.get(n, ())


def _documents(place: Path, planting: Planting) -> Iterator[tuple[str, Row]]:
    """The documents with text, and as rows of JSON lines with all columns."""
    if is_shard(place):
        if planting.model is None:
            raise InputError(f"{place}: a token shard. Name the model whose tokenizer made it: --tokenizer ANCHOR.")
        if planting.unit is not None:
            raise InputError(f"{place}: a token shard, which has no column {planting.unit!r}. Give the text itself.")
        yield from ((text, {TEXT: text}) for text in shard_texts(place, planting.model))
        return
    for n, document in enumerate(read_all(Source(str(place), planting.text)), 1):
        if document.text and not document.text.isspace():
            if planting.unit is not None and planting.unit not in document.columns:
                raise InputError(f"{place}, document {n}: {no_column(planting.unit, document.columns)}")
            talks = document.conversation is not None
            yield document.text, document.columns if talks else document.columns | {TEXT: document.text}


def _row(number: int, canary: Canary, unit: str | None) -> Row:
    return {TEXT: canary.text} | ({} if unit is None else {unit: f"canary {number}"})
