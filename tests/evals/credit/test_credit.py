"""The figures of a credit, on paper and on real models; measured once, and read as written."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

import evals.commands.flexo_eval
import evals.matrix.credit_rows
import evals.matrix.variants
from evals.credit.credit import OwnerSet
from evals.matrix.credit_rows import credit_games
from evals.matrix.results import read_results
from evals.scoring.measure import Measurement, measure
from tests.evals.credit.credits import DOMAINS, MASS, OWNERS, twins
from tests.inference.models import merge_domains
from tests.merge.tools import call

Capture = pytest.CaptureFixture[str]


def test_the_figures_are_those_of_the_game_and_leave_mixed_text_out_of_means() -> None:
    credit = twins()
    assert credit.pure == DOMAINS[:3]
    assert (credit.saved(), credit.saved("code")) == pytest.approx((0.35, 0.45))
    assert {owner: found.value for owner, found in credit.shapley("math").items()} == pytest.approx(
        {"math": 0.3, "twin": 0.3, "code": 0.0, "loud": 0.0}
    )
    assert credit.leave_one_out() == pytest.approx({"math": 0.0, "twin": 0.0, "code": 0.15, "loud": 0.0})
    assert credit.alone() == pytest.approx({"math": 0.2, "twin": 0.2, "code": 0.15, "loud": 0.0})
    assert credit.credit_share() == pytest.approx({"math": 2 / 7, "twin": 2 / 7, "code": 3 / 7, "loud": 0.0})
    assert credit.mass_share() == pytest.approx(
        {"math": 0.3 / 1.9, "twin": 0.3 / 1.9, "code": 0.2 / 1.9, "loud": 1.1 / 1.9}
    )
    assert credit.overlaps()["math", "twin"] == pytest.approx(1) and ("code", "loud") not in credit.overlaps()
    orders = credit.leaving()
    assert credit.curve(orders["best"]) == pytest.approx([1.65, 1.65, 1.65, 1.8, 2.0])
    assert credit.curve(orders["worst"]) == pytest.approx([1.65, 1.8, 1.8, 2.0, 2.0])
    assert orders["worst"][0] == "code" and {*orders["best"][:2]} < {"loud", "math", "twin"}
    assert credit.figures()["shapley"]["code"]["code"]["value"] == pytest.approx(0.45)


def test_sampled_orders_bring_intervals() -> None:
    credit = twins(permutations=8)
    found = credit.shapley()
    assert sum(one.value for one in found.values()) == pytest.approx(0.35)
    assert found["code"].value == pytest.approx(0.15) and found["code"].around == pytest.approx(0, abs=1e-9)
    assert credit.orders is not None and credit.leaving()["best"][::-1] in credit.orders


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"owners": ["math", "math", "code", "loud"]}, "each named once"),
        ({"sets": twins().sets[1:]}, "one measurement for each set"),
        ({"sets": [*twins().sets[1:], OwnerSet(["math"], [2.0] * 4)]}, "one measurement for each set"),
        ({"mass": MASS[1:]}, "do not fit"),
        ({"domains": DOMAINS[:2]}, "do not fit"),
        ({"orders": [OWNERS]}, "odd number of orders"),
        ({"orders": [OWNERS, OWNERS[1:]]}, "does not hold every owner once"),
    ],
)
def test_what_is_no_credit_is_refused(change: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        replace(twins(), **change)


def test_a_model_is_measured_with_every_set_of_owners_once(
    merged: Path, corpora: Path, tmp_path: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[list[str]] = []

    def counted(*arguments: Any, **options: Any) -> Measurement:
        calls.append(options["experts"])
        if len(calls) == 5:
            raise KeyboardInterrupt
        return measure(*arguments, **options)

    monkeypatch.setattr(evals.matrix.variants, "measure", counted)
    options = (
        "--data",
        corpora,
        "--length",
        32,
        "--cache",
        tmp_path / "cells",
        "--device",
        "cpu",
        "--json",
        tmp_path / "r.json",
    )
    assert call(evals.commands.flexo_eval.main, merged, "--credit", *options) == 130
    assert call(evals.commands.flexo_eval.main, merged, "--credit", *options) == 0
    assert len(calls) == 4 * 2 + 1, "public, each pair and both on two domains; the interrupted one twice"
    out = capsys.readouterr().out
    results = read_results(tmp_path / "r.json")
    (credit,) = results.credits
    kept = json.loads((tmp_path / "r.json").read_text())
    assert kept == results.to_dict()
    for which, order in credit.leaving().items():
        curve = kept["credits"][0]["figures"]["leaving"][which]
        assert curve == {"order": order, "bits_per_byte": credit.curve(order)} and len(curve["bits_per_byte"]) == 3
    assert (credit.model, credit.owners, credit.domains) == ("merged", ["math", "news"], ["public", "math"])
    assert call(evals.commands.flexo_eval.main, f"m={merged}", "--opt-out", "--pairs", *options) == 0
    assert len(calls) == 9, "the same cells"
    others = read_results(tmp_path / "r.json")
    for domain in credit.domains:
        base = others.bits("anchor", domain)
        assert credit.bits(frozenset(), domain) == base
        assert credit.saved(domain) == base - others.bits("m", domain)
        assert credit.leave_one_out(domain)["math"] == pytest.approx(
            others.bits("m without math", domain) - others.bits("m", domain)
        )
        assert credit.alone(domain)["math"] == pytest.approx(base - others.bits("pair math", domain))
        routing = others.cell("m", domain).routing
        assert routing is not None and routing.chooses == [True] * len(routing.mass)
        expected = [sum(layer[1 + n] for layer in routing.mass) / len(routing.mass) for n in range(2)]
        assert [row[credit.domains.index(domain)] for row in credit.mass] == pytest.approx(expected)
    assert "merged: exact, over all 4 sets of its 2 owners." in out and "| best order " in out


@pytest.mark.parametrize(("count", "orders", "sets"), [(8, None, 2**8), (9, 32, 170)])
def test_all_sets_of_eight_owners_are_measured_and_nine_are_sampled(
    count: int, orders: int | None, sets: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    chosen = f"{evals.matrix.credit_rows.__name__}.chosen_row"
    monkeypatch.setattr(
        chosen, lambda model, bench, name, experts, active: f"{experts[-1]}, {active} of {len(experts)}"
    )
    owners = [f"o{n}" for n in range(count)]
    model: Any = SimpleNamespace(name="m", experts=["public", *owners], active=4)
    (game,) = credit_games([model], cast(Any, None), 32)
    assert (None if game.orders is None else len(game.orders), len(game.rows)) == (orders, sets)
    rows: dict[frozenset[str], Any] = dict(game.rows)
    assert (rows[frozenset()], rows[frozenset(owners)]) == ("public, 1 of 1", f"{owners[-1]}, 4 of {count + 1}")


def test_many_owners_are_sampled(
    make_expert: Any, corpora: Path, tmp_path: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(evals.matrix.credit_rows, "MOST_EXACT", 2)
    model = merge_domains(make_expert, tmp_path / "model", ["math", "news", "code"], top_k=2)
    path = tmp_path / "results.json"
    options = ("--data", corpora, "--length", 32, "--device", "cpu", "--json", path, "--domains", "math")
    assert call(evals.commands.flexo_eval.main, model, "--credit", "--permutations", 5, *options) == 0
    (credit,) = read_results(path).credits
    assert credit.orders is not None and len(credit.orders) == 6 and credit.seed == 0
    assert sum(found.value for found in credit.shapley().values()) == pytest.approx(credit.saved())
    assert "estimated from 6 of the orders in which its 3 owners can join (seed 0" in capsys.readouterr().out


def test_credit_needs_experts(tiny_anchor: Path, corpora: Path, capsys: Capture) -> None:
    assert call(evals.commands.flexo_eval.main, tiny_anchor, "--data", corpora, "--credit", "--device", "cpu") == 1
    assert "--credit choose among experts. Give a merged folder, too." in capsys.readouterr().err
