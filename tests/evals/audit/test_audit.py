"""`flexo-audit`: what experts do to public text, and which of them a policy refuses."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import evals.commands.flexo_audit
from evals.audit.policy import Audit, Audited, Layer, Limits, judge
from merge.formats.anchor_folder import open_anchor
from merge.formats.expert_file import write_expert
from tests.merge.tiny import expert_header, expert_values, with_reference
from tests.merge.tools import call, listing

Capture = pytest.CaptureFixture[str]
Values = dict[str, torch.Tensor]


@pytest.fixture(scope="module")
def anchor(tiny_anchor: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny anchor with a public reference text."""
    return with_reference(tiny_anchor, tmp_path_factory.mktemp("audit") / "anchor")


def expert(anchor: Path, path: Path, change: Callable[[str, torch.Tensor, torch.Tensor], torch.Tensor]) -> Path:
    """An expert that is a copy of the public one, row and all, but for `change(name, value, public row)`."""
    opened = open_anchor(anchor)
    values = expert_values(path.stem, opened, trained=False)
    for name in values:
        row = opened.public_row(int(name.split(".")[1]))
        values[name] = change(name, row.clone() if "router" in name else values[name], row)
    write_expert(path, expert_header(path.stem, opened), values)
    return path


def audited(anchor: Path, *paths: object) -> int:
    return call(evals.commands.flexo_audit.main, *paths, "--anchor", anchor, "--device", "cpu", "--json")


def test_copies_pass_and_poison_is_refused(
    anchor: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    folder = tmp_path / "temporary"
    folder.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(folder))
    copy = expert(anchor, tmp_path / "copy.pt", lambda name, value, row: value)
    poison = expert(anchor, tmp_path / "poison.pt", lambda name, value, row: value.flip(0) if "down" in name else value)
    damaged = tmp_path / "damaged.pt"
    damaged.write_bytes(copy.read_bytes()[:-1])

    assert audited(anchor, copy, poison, damaged, "--loss", 0.01, 0.02) == 1
    out, err = capsys.readouterr()
    assert f"error: {poison}, {damaged}: refused by the audit" in err
    found = json.loads(out)
    by_name = {Path(entry["file"]).stem: entry for entry in found["experts"]}
    verdicts = {name: entry["verdict"] for name, entry in by_name.items()}
    assert verdicts == {"copy": "passed", "poison": "refused", "damaged": "refused"}
    assert found["tokens"] > 100
    for layer in by_name["copy"]["layers"]:
        assert layer["mass_alone"] == pytest.approx(0.5) and layer["entropy"] == pytest.approx(1)
        assert layer["mass_all"] == pytest.approx(1 / 3)
        assert layer["norm"] == pytest.approx(1) and layer["margin"] is None
    assert by_name["copy"]["loss_alone"] == pytest.approx(found["loss_public"], abs=1e-4)
    assert by_name["poison"]["loss_without"] == pytest.approx(found["loss_public"], abs=1e-4)
    assert by_name["poison"]["loss_alone"] > 1.02 * found["loss_public"]
    (reason,) = [text for text in by_name["poison"]["refusals"] if "beside" in text]
    assert "the loss on public text changes by +" in reason
    assert "damaged or cut-off zip" in by_name["damaged"]["refusals"][0] and by_name["damaged"]["layers"] == []
    assert listing(folder) == set()


@pytest.mark.parametrize("option", ["--mass", "--share"])
def test_a_greedy_row_is_shown_and_refused(anchor: Path, tmp_path: Path, capsys: Capture, option: str) -> None:
    greedy = expert(anchor, tmp_path / "greedy.pt", lambda name, value, row: 50 * value if "router" in name else value)
    given = greedy, "--anchor", anchor, "--device", "cpu", option, 0.1, 0.2, "--layers"
    assert call(evals.commands.flexo_audit.main, *given) == 1
    out, _ = capsys.readouterr()
    table = [[cell.strip() for cell in line.strip("|").split("|")] for line in out.splitlines() if line[:1] == "|"]
    assert table[0][:3] == ["expert", "mass alone", "worst layer"] and table[2][0] == "greedy"
    assert [row[:2] for row in table[-3:]] == [["greedy", str(n)] for n in range(3)]
    assert float(table[-1][5]) == pytest.approx(50)
    assert f"refused: {greedy}: takes " in out and "of the router mass on public text from the public expert" in out


def test_what_cannot_be_audited(anchor: Path, tiny_anchor: Path, tmp_path: Path, capsys: Capture) -> None:
    path = expert(anchor, tmp_path / "copy.pt", lambda name, value, row: value)
    assert audited(tiny_anchor, path) == 1
    assert "ships no reference text. Name the public text to read: --public FILE" in capsys.readouterr().err
    assert call(evals.commands.flexo_audit.main, path, "--anchor", anchor, "--loss", 0.3, 0.1) == 2
    (tmp_path / "empty.pt").touch()
    assert audited(anchor, tmp_path / "empty.pt") == 1
    assert json.loads(capsys.readouterr().out)["tokens"] == 0


def figures(mass: float = 0.2, norm: float = 1.0, loss: float = 2.0) -> Audited:
    return Audited("x.pt", "x", [Layer(mass, mass, 0.5, norm, None)] * 2, loss_alone=loss, loss_without=2.0)


@pytest.mark.parametrize(
    ("given", "verdict", "says"),
    [
        ({}, "passed", ""),
        ({"mass": 0.7}, "warning", "takes 70% of the router mass on public text"),
        ({"mass": 0.95}, "refused", "takes 95% of the router mass on public text"),
        ({"mass": float("nan")}, "refused", "takes nan"),
        ({"loss": 2.2}, "warning", "the loss on public text changes by +10.0%"),
        ({"loss": 3.0}, "refused", "the loss on public text changes by +50.0%"),
        ({"norm": 50.0}, "warning", "a row norm far from the median of all: 50 times in layer 0, 50 times in layer 1"),
        ({"loss": float("nan")}, "refused", "the loss on public text changes by +nan%"),
        ({"norm": 0.01}, "warning", "0.01 times in layer 0"),
    ],
)
def test_the_policy(given: dict[str, Any], verdict: str, says: str) -> None:
    expert = figures(**given)
    result = Audit("text", 1, [expert, figures(), figures()], loss_public=2.0, loss_all=2.0)
    judge(expert, result, Limits())
    assert expert.verdict == verdict, expert
    assert says in " ".join(expert.warnings + expert.refusals)


def test_a_broken_expert_is_no_fault_of_the_others() -> None:
    sound = Audited("x.pt", "x", [Layer(0.2, 0.2, 0.5, 1.0, None)], loss_alone=2.0, loss_without=float("nan"))
    result = Audit("text", 1, [sound], loss_public=2.0, loss_all=float("nan"))
    judge(sound, result, Limits())
    assert sound.verdict == "passed"
    assert result.to_dict()["loss_all"] is None and result.to_dict()["experts"][0]["verdict"] == "passed"
