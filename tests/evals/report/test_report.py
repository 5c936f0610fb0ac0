"""The report holds every figure, needs nothing from outside, and shows names as they are, whatever is in them."""

from __future__ import annotations

import json
import re
from html.parser import HTMLParser
from itertools import combinations
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

import evals.commands.flexo_report
from evals.matrix.measurement_cache import Store
from evals.matrix.results import Cell, CellRouting, DomainText, ModelRow, Results, read_results
from evals.matrix.seeds import Seeds, Spread
from evals.report.credit import credit_text
from evals.report.svg import bars, heat_map, sheet
from evals.scoring.measure import Measurement
from flexo.errors import InputError
from tests.evals.credit.credits import OWNERS, twins
from tests.merge.tools import call, listing

Capture = pytest.CaptureFixture[str]
ROOT = Path(__file__).resolve().parents[3]
ODD = '<script>alert("1")</script>|&'
DOMAINS = ["public", ODD, "mixed/switching"]
EXPERTS = ["public", ODD]
MODELS = [
    ModelRow("anchor", "anchor"),
    ModelRow(f"model {ODD}", "merged", experts=EXPERTS, active=2),
    ModelRow("top-1", "merged", f"model {ODD}", "active", EXPERTS, 1),
    ModelRow("top-2", "merged", f"model {ODD}", "active", EXPERTS, 2),
    ModelRow("out", "merged", f"model {ODD}", "opt-out", ["public"], 1),
    ModelRow("one", "merged", f"model {ODD}", "growing", ["public"], 1),
    ModelRow("two", "merged", f"model {ODD}", "growing", EXPERTS, 2),
]


def results(seed: int) -> Results:
    """Every cell has a number of its own."""
    cells = []
    for m, model in enumerate(MODELS):
        for d, domain in enumerate(DOMAINS):
            routing = None
            if model.experts:
                share = [1 / len(model.experts)] * len(model.experts)
                mass = [[0.25, 0.75][: len(share)], share] if len(share) > 1 else [share, share]
                routing = CellRouting(model.experts, mass, [0.5, 1.0], [share, share], mass, [0.4, 0.6], 0.7)
            cells.append(Cell(model.name, domain, 2 + m / 10 + d / 100 + seed / 1000, 0.3, 1.0, routing))
    domains = [DomainText(domain, 3, 100, 40, "0" * 64) for domain in DOMAINS]
    return Results(seed, "test", 1000, {"flexo": "0"}, domains, MODELS, cells)


def write(path: Path, value: dict[str, Any]) -> Path:
    path.write_text(json.dumps(value))
    return path


@pytest.fixture
def files(tmp_path: Path) -> list[Path]:
    return [write(tmp_path / f"{seed}.json", results(seed).to_dict()) for seed in (0, 2)]


class Page(HTMLParser):
    """All tags with their attributes, and all text of table cells."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.said: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.said.append(data)


def test_a_file_is_read_as_it_was_written(files: list[Path]) -> None:
    assert read_results(files[0]) == results(0)
    assert results(0).mean("anchor") == pytest.approx((2 + 2.01) / 2), "mixed text is not in a mean"
    assert results(0).change("two", "public") == pytest.approx(2.6 / 2 - 1)
    assert results(0).worst("two") == ("public", pytest.approx(0.3))
    assert results(0).own_mass("two") == 0.5


def test_files_of_version_1_are_read(tmp_path: Path) -> None:
    old = results(0).to_dict() | {"version": 1}
    for cell in old["cells"]:
        if cell["routing"]:
            cell["routing"]["share"] = cell["routing"].pop("active_share")
    assert read_results(write(tmp_path / "old.json", old)) == results(0)
    published = [path for path in (ROOT / "docs/results").rglob("*.json") if '"flexo.results"' in path.read_text()[:99]]
    assert len(published) >= 10
    routed = [path.name for path in published if any(cell.routing for cell in read_results(path).cells)]
    assert len(routed) >= 6


def test_spreads_are_those_of_the_seeds() -> None:
    spread = Spread((1.0, 2.0, 4.0))
    assert (spread.mean, spread.range) == (pytest.approx(7 / 3), 3.0)
    assert spread.deviation == pytest.approx(((16 / 9 + 1 / 9 + 25 / 9) / 2) ** 0.5)
    assert spread.text("{:.2f}".format) == "2.33 ±1.53 (3.00)" and Spread((1.0,)).text("{:.2f}".format) == "1.00"
    seeds = Seeds([results(0), results(2)])
    found = seeds.bits("top-1", "public")
    assert found is not None and found.values == (2.2, pytest.approx(2.202))


def test_the_report_has_every_cell_and_nothing_from_outside(files: list[Path], tmp_path: Path) -> None:
    output, table = tmp_path / "report.html", tmp_path / "table.md"
    assert call(evals.commands.flexo_report.main, *files, "-o", output, "--markdown", table, "--title", f"T {ODD}") == 0
    text = output.read_text()
    page = Page(text)
    assert not re.search(r"(https?:|//|url\(|@import)", text.replace("</", ""))
    assert {tag for tag, _ in page.tags}.isdisjoint({"script", "link", "img", "iframe", "object", "embed"})
    assert not any(name.startswith("on") or name in ("src", "href") for _, attrs in page.tags for name in attrs)
    assert f"T {ODD}" in page.said and f"model {ODD}, top-2 of 2" in page.said and ODD in page.said
    for model in MODELS[:2]:
        for domain in DOMAINS:
            mean = results(1).bits(model.name, domain)
            assert f"{mean:.3f}" in page.said
    assert text.count("±0.001 (0.002)") == 2 * (len(DOMAINS) + 1) + 2, "the matrix, and the means of what is active"
    own = [attrs for tag, attrs in page.tags if tag == "td" and attrs.get("class") == "own"]
    assert len(own) == 1, "the domain of the expert that left"
    pictures = [attrs["aria-label"] for tag, attrs in page.tags if tag == "svg"]
    assert pictures.count("mean") == 2, "over experts and over active ones"
    assert all(pictures.count(domain) == 3 for domain in DOMAINS), "... and a heat map"
    assert {"own mass", "agreement", "entropy, bits of 1.00", "active share"} <= set(pictures)
    lines = table.read_text().splitlines()
    assert len(lines) == 2 + len(MODELS) and all(
        f"{2 + m / 10 + 0.001:.3f}" in lines[2 + m] for m in range(len(MODELS))
    )
    assert len({len(re.findall(r"(?<!\\)\|", line)) for line in lines}) == 1, "a name with a bar is one cell"


def test_pictures_are_files_that_any_reader_of_svg_takes(files: list[Path], tmp_path: Path) -> None:
    folder = tmp_path / "pictures"
    assert call(evals.commands.flexo_report.main, *files, "-o", tmp_path / "report.html", "--pictures", folder) == 0
    on_page = [attrs["aria-label"] for tag, attrs in Page((tmp_path / "report.html").read_text()).tags if tag == "svg"]
    drawn = {path.name: ElementTree.parse(path).getroot() for path in folder.iterdir()}
    assert {"number-of-experts.svg", "active-experts.svg"} < set(drawn) and all(name.isprintable() for name in drawn)
    titles = [svg.get("aria-label") for root in drawn.values() for svg in root.iter("{http://www.w3.org/2000/svg}svg")]
    assert sorted(filter(None, titles)) == sorted(filter(None, on_page)), "what the page shows, once"
    for root in drawn.values():
        boxes = [
            tuple(float(svg.get(a, 0)) for a in ("x", "y", "width", "height")) for svg in root[2:] if svg.get("viewBox")
        ]
        assert all(
            x + w <= float(root.get("width", 0)) and y + h <= float(root.get("height", 0)) for x, y, w, h in boxes
        )
        apart = [(a, b) for a, b in combinations(boxes, 2) if a[0] < b[0] + b[2] and b[0] < a[0] + a[2]]
        assert all(a[1] + a[3] <= b[1] or b[1] + b[3] <= a[1] for a, b in apart), "none lies over another"


def test_a_sheet_is_as_wide_as_its_widest_picture() -> None:
    names = [f"expert {n}" for n in range(64)]
    root = ElementTree.fromstring(sheet([heat_map("public", ["layer 0"], names, [[0.5] * 64])]))
    assert float(root.get("width", 0)) > 64 * 30


def test_what_xml_cannot_hold_is_replaced() -> None:
    drawn = sheet([heat_map("a\x00b\ud800", ["x"], ["y\x1b"], [[0.5]])], ["c\x0b"])
    assert "\ufffd" in drawn and ElementTree.fromstring(drawn) is not None


def test_bars_go_both_ways_from_zero() -> None:
    picture = bars("shares", ["one", "other"], [[0.5, -0.25], [0.25, float("nan")]])
    root = ElementTree.fromstring(sheet([picture]))
    drawn = [rect for rect in root.iter("{http://www.w3.org/2000/svg}rect") if rect.get("y") is not None]
    left, right = (
        [float(rect.get("x", 0)) + extra * float(rect.get("width", 0)) for rect in drawn] for extra in (0, 1)
    )
    zero = left[0]
    assert left[1] == zero and right[2] == pytest.approx(zero, abs=0.11) and left[2] < zero, (
        "the row of each, then its bars"
    )
    assert (
        right[0] - zero == pytest.approx(2 * (right[1] - zero), abs=0.2) == pytest.approx(2 * (zero - left[2]), abs=0.2)
    )
    assert right[3] == left[3], "a figure that is no number has no bar"


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"version": 3}, "expected results of flexo-eval, version 1 or 2, got format 'flexo.results', version 3"),
        ({"domains": []}, "domains without names of their own"),
        ({"models": results(0).to_dict()["models"][1:]}, "not one cell for every model"),
        ({"cells": results(0).to_dict()["cells"] + [{"model": 1}]}, "cells.21.model"),
        ({"surplus": 1}, "surplus: Unexpected keyword argument"),
        ({"seed": "x"}, "seed: "),
    ],
)
def test_what_is_not_results_is_refused(files: list[Path], capsys: Capture, change: dict[str, Any], said: str) -> None:
    write(files[1], json.loads(files[1].read_text()) | change)
    before = listing(files[0].parent)
    assert call(evals.commands.flexo_report.main, *files, "-o", files[0].parent / "report.html") == 1
    out, err = capsys.readouterr()
    assert out == "" and err.startswith(f"error: {files[1]}: ") and err.count("\n") == 1 and said in err
    assert listing(files[0].parent) == before


def test_seeds_of_other_text_are_refused(files: list[Path], capsys: Capture) -> None:
    value = results(2).to_dict()
    value["domains"][0]["digest"] = "1" * 64
    write(files[1], value)
    assert call(evals.commands.flexo_report.main, *files, "-o", files[0].parent / "report.html") == 1
    assert f"{files[1]}: measured on other text than {files[0]} (public differ)" in capsys.readouterr().err


def test_tables_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ValueError, match="do not fit the experts"):
        CellRouting(["public"], [[0.5, 0.5]], [1.0], [[1.0]], [[1.0]], None, None)
    with pytest.raises(ValueError, match="numbers of layers"):
        CellRouting(["public"], [[1.0]], [1.0, 1.0], [[1.0]], [[1.0]], None, None)
    with pytest.raises(ValueError, match="no layer chooses"):
        CellRouting(["public"], [[1.0]], [1.0], [[1.0]], [[1.0]], None, None, [False])


def test_a_cell_is_kept_under_all_that_it_depends_on(tmp_path: Path) -> None:
    found = Measurement(1.5, 4, 2, 10, passes=2.0)
    Store(tmp_path, Measurement).keep({"models": ["a"], "text": "t"}, found)
    assert Store(tmp_path, Measurement).find({"text": "t", "models": ["a"]}) == found
    assert Store(tmp_path, Measurement).find({"text": "t", "models": ["b"]}) is None
    assert Store(None, Measurement).find({"text": "t", "models": ["a"]}) is None


def with_credit(seed: int) -> Results:
    """Results with a credit of one merged model."""
    domains = ["public", "math", "mixed/blended"]
    cells = [Cell(model, domain, 2.0 + seed / 1000, 0.3) for model in ("anchor", "ours") for domain in domains]
    models = [ModelRow("anchor", "anchor"), ModelRow("ours", "merged", experts=["public", *OWNERS], active=2)]
    texts = [DomainText(domain, 3, 100, 40, "0" * 64) for domain in domains]
    return Results(seed, "test", 1000, {"flexo": "0"}, texts, models, cells, [twins(domains)])


def test_credit_is_told_drawn_and_read_back(tmp_path: Path) -> None:
    files = [write(tmp_path / f"{seed}.json", with_credit(seed).to_dict()) for seed in (0, 1)]
    assert read_results(files[0]) == with_credit(0)
    (credit,) = with_credit(0).credits
    text = credit_text(credit)
    rows = {
        row[0]: row[1:] for line in text.splitlines() if (row := [c.strip() for c in line.strip("|").split("|")])[1:]
    }
    assert rows["math"][:5] == ["+0.1500", "+0.0000", "+0.3000", "50.0%", "20.0%"]
    assert "loud: 0% of the bits saved, but" in text
    assert "math and twin replace each other: with both, 100% of the smaller one's value alone is lost." in text
    output, pictures = tmp_path / "report.html", tmp_path / "pictures"
    assert call(evals.commands.flexo_report.main, *files, "-o", output, "--pictures", pictures) == 0
    page = Page(output.read_text())
    assert "Credit" in page.said and "loud" in page.said and "+0.1500" in page.said
    labels = [attrs["aria-label"] for tag, attrs in page.tags if tag == "svg"]
    assert {"credit and router mass", "mean", "public", "math"} <= {*labels}
    for name in ("credit-ours.svg", "leaving-ours.svg"):
        assert ElementTree.parse(pictures / name).getroot() is not None


def test_a_credit_of_another_model_is_refused(tmp_path: Path) -> None:
    value = with_credit(0).to_dict()
    value["credits"][0]["model"] = "other"
    with pytest.raises(InputError, match="a credit of no model here"):
        read_results(write(tmp_path / "r.json", value))
