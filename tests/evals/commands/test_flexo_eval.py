from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import evals.commands.flexo_eval
import evals.matrix.variants
from evals.matrix.results import read_results
from evals.scoring.measure import Measurement, measure
from tests.flexmix.text import write_jsonl
from tests.merge.tools import call, listing

ROOT = Path(__file__).resolve().parents[3]
Capture = pytest.CaptureFixture[str]


def evaluate(*arguments: object) -> int:
    return call(evals.commands.flexo_eval.main, *arguments, "--device", "cpu")


def test_a_merged_model_is_shown_with_its_pairs_and_anchor(
    merged: Path, corpora: Path, tmp_path: Path, capsys: Capture
) -> None:
    path = tmp_path / "matrix.json"
    assert evaluate(merged, "--data", corpora, "--length", 32, "--json", path) == 0
    out, err = capsys.readouterr()
    assert err == ""
    lines = out.splitlines()
    table = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[:-1] if line.startswith("|")]
    assert table[0] == ["bits per byte", "public", "math", "mean", "worst against anchor"]
    assert [row[0] for row in table[2:]] == ["anchor", "pair math", "pair news", "merged, top-2 of 3"]
    results = read_results(path)
    assert json.loads(path.read_text()) == results.to_dict()
    for model, (_, *cells) in zip(results.models, table[2:], strict=True):
        row = [results.bits(model.name, domain) for domain in ("public", "math")]
        assert cells[:-1] == [f"{value:.3f}" for value in (*row, sum(row) / 2)]
        assert all(1 < value < 20 for value in row)
    assert lines[-1] == f"wrote {path}"


def test_a_plain_model_domains_and_sizes(tiny_anchor: Path, corpora: Path, capsys: Capture) -> None:
    assert evaluate(tiny_anchor, "--data", corpora, "--domains", "poems,math", "--max-bytes", 1) == 0
    out = capsys.readouterr().out
    table = [[cell.strip() for cell in line.strip("|").split("|")] for line in out.splitlines() if line.strip()]
    assert table[0] == ["bits per byte", "poems", "math", "mean", "worst against anchor"]
    assert [row[0] for row in table[2:]] == ["anchor"]


def test_many_domains_are_not_cut_off(tiny_anchor: Path, tmp_path: Path, capsys: Capture) -> None:
    names = [f"domain-number-{n:02}" for n in range(12)]
    for name in names:
        write_jsonl(tmp_path / name / "test.jsonl", ["the cat"])
    assert evaluate(tiny_anchor, "--data", tmp_path) == 0
    out = capsys.readouterr().out
    assert all(f"| {name} |" in out for name in names)
    assert max(map(len, out.splitlines())) < 300


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--data", "gone"], "gone: no such folder"),
        (["--data", "{data}", "--domains", "maths"], "no domain 'maths' in it. There are math, poems, public"),
        (["--data", "{data}", "--length", "4096"], "--length 4096: these models were made for at most 128 tokens"),
        (["--data", "{data}", "--json", "{data}"], "a folder stands where the output file should go"),
        (["--data", "{data}", "--json", "{data}/manifest.json/x"], "cannot be written"),
        (["--data", "{data}", "--dtype", "int4"], "--dtype int4: expected one of"),
        (["--data", "{data}", "--cache", "{data}/manifest.json"], "manifest.json/README: cannot be written"),
    ],
)
def test_what_cannot_be_is_refused_in_one_message(
    merged: Path, corpora: Path, capsys: Capture, arguments: list[str], said: str
) -> None:
    before = listing(corpora)
    options = [argument.format(data=corpora) for argument in arguments]
    assert evaluate(merged, "--length", 32, *options) == 1
    out, err = capsys.readouterr()
    assert out == "" and err.startswith("error: ") and err.count("\n") == 1 and said in err
    assert listing(corpora) == before


def test_bad_text_is_refused_and_leaves_no_file(merged: Path, tmp_path: Path, capsys: Capture) -> None:
    path = write_jsonl(tmp_path / "data/math/test.jsonl", ["good"])
    path.write_bytes(path.read_bytes() + b"bad")
    assert evaluate(merged, "--data", tmp_path / "data", "--length", 32, "--json", tmp_path / "new" / "m.json") == 1
    assert "test.jsonl: line 2: not JSON" in capsys.readouterr().err
    assert listing(tmp_path) == {"data"}


def test_what_was_measured_is_not_measured_again(
    merged: Path, tiny_anchor: Path, corpora: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An interrupted command goes on where it stopped, under other names too, and a damaged cell is made anew."""
    cells, calls = tmp_path / "cells", 0
    whole = measure

    def counted(*arguments: Any, **options: Any) -> Measurement:
        nonlocal calls
        calls += 1
        if calls == stop:
            raise KeyboardInterrupt
        return whole(*arguments, **options)

    monkeypatch.setattr(evals.matrix.variants, "measure", counted)
    options = ["--data", corpora, "--length", 32, "--active", "1,2", "--opt-out", "--cache", cells]
    stop = 6  # eight cells: two domains on the anchor, the model, one active, and without math; with two it is itself
    assert evaluate(tiny_anchor, merged, *options, "--json", tmp_path / "a.json") == 130
    assert len(list(cells.rglob("*.json"))) == 5 and not (tmp_path / "a.json").exists()
    calls, stop = 0, -1
    assert evaluate(tiny_anchor, merged, *options, "--json", tmp_path / "a.json") == 0
    assert calls == 10 - 5
    calls = 0
    assert evaluate(f"other={merged}", tiny_anchor, *options, "--json", tmp_path / "b.json") == 0
    assert calls == 0
    one, other = read_results(tmp_path / "a.json"), read_results(tmp_path / "b.json")
    assert [cell.bits_per_byte for cell in one.cells] == [cell.bits_per_byte for cell in other.cells]
    next(cells.rglob("*.json")).write_text("{")
    assert evaluate(tiny_anchor, merged, *options) == 0
    assert calls == 1
    assert {path.suffix for path in cells.rglob("*") if path.is_file()} == {".json", ""}


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["{expert}"], "an expert is measured beside its anchor. Give the anchor: --anchor FOLDER"),
        (["{merged}", "a={merged}", "--active", "9"], "--active 9: no model here has so many experts"),
        (["{merged}", "{merged}"], "another model is called 'model', too. Give it a name of its own: a="),
        (["{anchor}", "--opt-out"], "choose among experts. Give a merged folder"),
        (["{anchor}", "--btm", "2"], "--btm 2: 1 dense models here, expected 2 or more"),
        (["{anchor}", "--classifier"], "--classifier chooses among experts"),
        (["{merged}", "--classifier"], "--classifier: no training text of 'public'"),
        (["gone"], "gone: no such file or folder"),
        (["{merged}", "--active", "some"], "--active some: expected numbers"),
        (["{merged}", "--split", "half"], "--split half: expected one of"),
    ],
)
def test_models_that_cannot_be_are_refused(
    merged: Path, tiny_anchor: Path, corpora: Path, make_expert: Any, capsys: Capture, arguments: list[str], said: str
) -> None:
    expert = make_expert("math") if "{expert}" in arguments else ""
    given = [argument.format(merged=merged, anchor=tiny_anchor, expert=expert) for argument in arguments]
    assert evaluate(*given, "--data", corpora, "--length", 32) == 1
    out, err = capsys.readouterr()
    assert out == "" and err.startswith("error: ") and err.count("\n") == 1 and said in err


def test_help_is_quick() -> None:
    body = 'try:\n    main()\nfinally:\n    print("torch" in sys.modules)'
    program = f"import sys\nfrom evals.commands.flexo_eval import main\n{body}"
    done = subprocess.run([sys.executable, "-c", program, "--help"], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0 and done.stdout.rstrip().endswith("False")
    assert "flexo-eval model/ --data data/corpora" in done.stdout
