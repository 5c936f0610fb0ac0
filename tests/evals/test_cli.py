from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

import evals.cli
from tests.flexmix.text import write_jsonl
from tests.merge.tools import call, listing

ROOT = Path(__file__).parent.parent.parent
Capture = pytest.CaptureFixture[str]


def evaluate(*arguments: object) -> int:
    return call(evals.cli.main, *arguments, "--device", "cpu")


def test_a_merged_model_is_shown_with_its_pairs_and_anchor(
    merged: Path, corpora: Path, tmp_path: Path, capsys: Capture
) -> None:
    path = tmp_path / "matrix.json"
    assert evaluate(merged, "--data", corpora, "--length", 32, "--json", path) == 0
    out, err = capsys.readouterr()
    assert err == ""
    lines = out.splitlines()
    table = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[:-1] if line.startswith("|")]
    assert table[0] == ["bits per byte", "public", "math", "mean"]
    assert [row[0] for row in table[2:]] == ["anchor", "pair math", "pair news", "merged, top-2 of 3"]
    numbers = json.loads(path.read_text())
    assert numbers["unit"] == "bits per byte" and numbers["bytes"].keys() == {"public", "math"}
    for name, *cells in table[2:]:
        row = list(numbers["models"][name].values())
        assert cells == [f"{value:.3f}" for value in (*row, sum(row) / 2)]
        assert all(1 < value < 20 for value in row)
    assert lines[-1] == f"wrote {path}"


def test_a_plain_model_domains_and_sizes(tiny_anchor: Path, corpora: Path, capsys: Capture) -> None:
    assert evaluate(tiny_anchor, "--data", corpora, "--domains", "poems,math", "--max-bytes", 1) == 0
    out = capsys.readouterr().out
    table = [[cell.strip() for cell in line.strip("|").split("|")] for line in out.splitlines() if line.strip()]
    assert table[0] == ["bits per byte", "poems", "math", "mean"]
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
        (["--data", "{data}", "--length", "4096"], "--length 4096: this model was made for at most 128 tokens"),
        (["--data", "{data}", "--json", "{data}"], "a folder stands where the output file should go"),
        (["--data", "{data}", "--json", "{data}/manifest.json/x"], "cannot be written"),
        (["--data", "{data}", "--dtype", "int4"], "--dtype int4: expected one of"),
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


def test_help_is_quick() -> None:
    program = "import sys, evals.cli\ntry:\n    evals.cli.main()\nfinally:\n    print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", program, "--help"], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0 and done.stdout.rstrip().endswith("False")
    assert "flexo-eval model/ --data data/corpora" in done.stdout
