"""`generate` for programs: what `flexo-generate` prints, and what made it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import inference.commands.flexo_generate
from flexo.errors import InputError
from inference.generate import Sampling, generate
from tests.merge.tools import call


def test_it_is_what_the_command_prints(merged: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sampling = Sampling(max_new_tokens=8, temperature=0.8, seed=3)
    made = generate(str(merged), "The cat", experts=["public", "news"], sampling=sampling)
    assert capsys.readouterr().out == ""
    report = tmp_path / "report.json"
    arguments = ["--max-new-tokens", 8, "--temperature", 0.8, "--seed", 3, "--experts", "public,news"]
    options = [*arguments, "--attribution-out", report]
    assert call(inference.commands.flexo_generate.main, merged, "The cat", *options) == 0
    assert capsys.readouterr().out == f"The cat{made.text}\n" and made.text
    found = json.loads(report.read_text())
    assert made.answer is not None and found["text"] == made.text
    assert made.answer.tokens == [token["id"] for token in found["tokens"]]
    assert made.answer.shares == {expert["domain"]: expert["share"] for expert in found["experts"]}
    assert made.answer.shares["math"] == 0 and sum(made.answer.shares.values()) == pytest.approx(1)


def test_a_model_that_no_merge_made_has_nobody_to_credit(tiny_anchor: Path) -> None:
    made = generate(tiny_anchor, "The cat", sampling=Sampling(max_new_tokens=4))
    assert made.text and made.answer is None


def test_what_cannot_be_is_refused(merged: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="Shorten the prompt or pass a smaller --max-new-tokens"):
        generate(merged, "The cat", sampling=Sampling(max_new_tokens=1000))
    with pytest.raises(InputError, match="'nws': no such expert"):
        generate(merged, "The cat", experts=["nws"])
    with pytest.raises(InputError, match="no such folder"):
        generate(tmp_path / "gone", "The cat")
