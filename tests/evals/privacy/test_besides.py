"""What is left behind by an expert, and what rights to it are worth, on tiny models."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from evals.privacy.attacks.part import Extra, Row
from evals.privacy.besides.leaving import UNEQUAL
from evals.privacy.leak import Leak, Texts, leak
from flexo.errors import InputError
from merge.planning.membership import opt_out
from tests.flexmix.text import TEXTS, write_jsonl
from tests.inference.models import merge_domains


@pytest.fixture(scope="module")
def never(make_expert: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The merged model as if `math` had never been in it."""
    return merge_domains(make_expert, tmp_path_factory.mktemp("never") / "model", ["news"], top_k=2)


@pytest.fixture(scope="module")
def texts(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Texts]:
    folder = tmp_path_factory.mktemp("texts")
    write_jsonl(folder / "members.jsonl", TEXTS[:2])
    write_jsonl(folder / "others.jsonl", TEXTS[2:])
    for domain, part in (("math", TEXTS[:2]), ("news", TEXTS[2:])):
        for split in ("train", "test"):
            write_jsonl(folder / "domains" / domain / f"{split}.jsonl", part)
    return lambda **extra: Texts(folder / "members.jsonl", folder / "others.jsonl", Extra(folder / "domains", **extra))


def unequal(found: Leak) -> dict[str, float]:
    return {row.group: row.value for row in found.rows if row.figure == UNEQUAL}


def test_what_an_expert_leaves_behind_is_nothing_to_the_bit(
    merged: Path, never: Path, texts: Callable[..., Texts], tmp_path: Path
) -> None:
    found = leak(str(merged), texts(never=never), parts=["leaving"])
    ways = [
        f"{way}{force}"
        for way in ("left", "not entitled")
        for force in ("", ", forced onto public", ", forced onto news")
    ]
    assert unequal(found) == dict.fromkeys(ways, 0)
    figures = {row.group: row for row in found.rows if row.figure != UNEQUAL}
    assert figures["left, forced onto news"].value == figures["never had it, forced onto news"].value
    assert figures["with math"].value != figures["left"].value
    opt_out(merged, tmp_path / "left", drop=["math"])
    found = leak(str(tmp_path / "left"), texts(never=never), parts=["leaving"])
    assert unequal(found) == dict.fromkeys(ways[:3], 0)


def test_another_model_is_seen(
    merged: Path, make_expert: Callable[..., Path], texts: Callable[..., Texts], tmp_path: Path
) -> None:
    """Also where only one expert differs, and only when it is made to speak alone."""
    other = merge_domains(lambda name: make_expert(name, seed=7), tmp_path / "never", ["news"], top_k=2)
    found = unequal(leak(str(merged), texts(never=other), parts=["leaving"]))
    assert found["left"] == found["not entitled, forced onto news"] == len(TEXTS)
    assert found["left, forced onto public"] == 0
    with pytest.raises(InputError, match="in the same order, without some"):
        leak(str(other), texts(never=merged), parts=["leaving"])


def rows_of(found: Leak, start: str) -> Iterator[Row]:
    return (row for row in found.rows if row.figure.startswith(start))


def test_rights_are_worth_what_they_change(merged: Path, texts: Callable[..., Texts]) -> None:
    found = leak(str(merged), texts(), parts=["access"])
    assert {row.group for row in found.rows} == {"math", "news"} and len(found.rows) == 2 * 6
    assert all(0 <= row.value <= 1 for row in rows_of(found, "domain distinguishability"))
    assert all(row.reference == 0.5 for row in rows_of(found, "domain distinguishability, AUC, loss less"))
    assert all(row.value > 0 for row in rows_of(found, "utility gap, nats"))
