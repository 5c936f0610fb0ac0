"""What runs on one text have cost together."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

pytest.importorskip("dp_accounting", reason="the extra privacy is not installed")

from flexo.errors import InputError
from trainers.privacy.accounting import Release, spent
from trainers.privacy.guarantee import Counts, Guarantee, PrivacyOptions
from trainers.privacy.ledger import enter, read_ledger

TEXT = "a" * 64
ONE = Release("gradients", 2.0)


def made(budget: float | None = None, unit: str = "document") -> Guarantee:
    options = PrivacyOptions(2.0, 1e-5, unit, budget=budget)
    return Guarantee(options, Counts(10, 10), 1e-5, 0.1, 1.0, (ONE,), spent([ONE], 1e-5))


def test_runs_add_up_and_one_that_goes_on_counts_once(tmp_path: Path) -> None:
    path = tmp_path / "train.jsonl.privacy.json"
    once = enter(path, TEXT, "first", "math.pt", made())
    assert f"an epsilon of {spent([ONE], 1e-5):.3g} ({path})" in once
    assert enter(path, TEXT, "first", "math.pt", made()) == once
    twice = enter(path, TEXT, "second", "math-2.pt", made())
    assert f"an epsilon of {spent([ONE, ONE], 1e-5):.3g} " in twice
    assert read_ledger(path, TEXT).keys() == {"first", "second"}
    assert "runs for document are not in this sum" in enter(path, TEXT, "third", "math.pt", made(unit="patient"))


def test_a_run_above_the_budget_is_refused_before_it_is_entered(tmp_path: Path) -> None:
    path = tmp_path / "ledger.json"
    enter(path, TEXT, "first", "math.pt", made())
    before = path.read_bytes()
    with pytest.raises(InputError, match=r"have cost an epsilon of .* above privacy\.budget=2\.5"):
        enter(path, TEXT, "second", "math.pt", made(budget=2.5))
    assert path.read_bytes() == before
    enter(path, TEXT, "first", "math.pt", made(budget=2.5))


@pytest.mark.parametrize(
    "change",
    [
        {"version": 2}, {"runs": {"x": {}}}, {"runs": {"x": {"unit": "a", "releases": [{"name": 1}]}}}, {"runs": 5},
        {"runs": {"x": {"unit": "a", "releases": [{"name": "g", "noise": -1, "rate": 1, "times": 1}]}}},
    ],
)  # fmt: skip
def test_what_is_no_ledger_is_refused_and_stays_as_it_is(tmp_path: Path, change: dict[str, object]) -> None:
    path = tmp_path / "ledger.json"
    enter(path, TEXT, "first", "math.pt", made())
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    before = path.read_bytes()
    with pytest.raises(InputError, match="not a privacy ledger of version 1, or damaged"):
        enter(path, TEXT, "second", "math.pt", made())
    assert path.read_bytes() == before


def test_the_ledger_of_other_text_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "ledger.json"
    enter(path, TEXT, "first", "math.pt", made())
    with pytest.raises(InputError, match="the ledger of other text"):
        enter(path, "b" * 64, "second", "math.pt", made())


def test_a_place_that_cannot_be_written_is_named(locked: Path) -> None:
    with pytest.raises(InputError, match=r"ledger cannot be written.*privacy\.ledger=FILE"):
        enter(locked / "ledger.json", TEXT, "first", "math.pt", made())
