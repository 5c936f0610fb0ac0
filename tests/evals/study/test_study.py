"""A study from corpora to report with a miniature anchor, twice; and what is refused before anything is made."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from evals.matrix.results import read_results
from evals.study.folder import find_text, keep_text, link, study_folder
from evals.study.results import join_results
from evals.study.study import GivenAnchor, StudyOptions, run_study
from flexo.errors import InputError
from tests.evals.study.studies import MINIATURE, study
from tests.trainers.runs import shard


@pytest.fixture
def corpora(tmp_path: Path) -> Path:
    for name in ("public", "math", "code"):
        for split, documents in (("train", 200), ("test", 40)):
            shard(tmp_path / "corpora" / name / f"{split}.jsonl.gz", name, documents)
    return tmp_path / "corpora"


def options(folder: Path, **changes: Any) -> StudyOptions:
    values = {"output": folder.parent / "study", "seeds": (0,), "corpora": folder, "jobs": 2}
    return StudyOptions(**(values | changes))


@pytest.mark.slow  # two dozen processes, each of which loads torch
def test_a_study_ends_in_a_report_and_is_measured_again_without_training(corpora: Path) -> None:
    said: list[str] = []
    small = study("small", *MINIATURE)
    only = ("ours", "dense", "soup", "btm", "classifier", "phatgoose", "mixture-2x", "ours-rt")
    run_study(small, options(corpora, only=only), said.append)
    folder = corpora.parent / "study"
    results = read_results(folder / "seed0/results.json")
    rows = {model.name: model.kind for model in results.models}
    assert {"anchor", "ours", "soup", "dense math", "ours math", "BTM top-2", "phatgoose", "mixture-2x"} <= rows.keys()
    assert rows["dense math"] == "dense" and rows["ours math"] == "pair"
    assert {"ours top-1", "ours without code", "ours with 2 experts"} <= rows.keys()
    assert (folder / "report.html").exists() and (folder / "results.md").read_text() in said
    experts = {path: path.read_bytes() for path in folder.rglob("*.pt")}
    assert len(experts) == 4
    said.clear()
    run_study(small, options(corpora, only=("ours", "soup"), split="valid"), said.append)
    assert "9 runs, 7 of them done before" in said
    assert (folder / "report-valid.html").exists() and (folder / "seed0/results-valid.json").exists()
    assert experts == {path: path.read_bytes() for path in folder.rglob("*.pt")}


def test_a_plan_says_what_would_be_run_and_makes_nothing(corpora: Path) -> None:
    said: list[str] = []
    run_study(study("full"), options(corpora, plan=True, only=("soup",)), said.append)
    assert [line.split()[0] for line in said] == [
        "train_anchor", "train_expert", "train_expert", "flexo-soup", "flexo-eval"
    ]  # fmt: skip
    assert not (corpora.parent / "study").exists()
    said.clear()
    run_study(study("small"), options(corpora, plan=True, corpora=None), said.append)
    assert "domain.train=corpora/creative/train.jsonl.gz" in " ".join(said)  # text that is still to be built


def test_text_and_anchor_must_be_usable_and_stay_what_they_were(corpora: Path, tmp_path: Path) -> None:
    small, folder = study("small"), corpora.parent / "study"

    def refused(match: str, **changes: Any) -> None:
        with pytest.raises(InputError, match=match):
            run_study(small, options(corpora, **changes))

    refused("no domain 'law' in it", domains=("law",))
    refused("no such folder", corpora=tmp_path / "nowhere")
    refused("nowhere", anchor=GivenAnchor(tmp_path / "nowhere"))
    refused("expected one of test", split="tset")
    refused("no recipe 'none'", only=("none",))
    assert not folder.exists()
    with study_folder(folder):
        refused("another study is running")
        link(folder, "corpora", corpora)
        keep_text(folder, find_text(corpora, None, "test"))
    refused("begun with another corpora", corpora=Path(shutil.copytree(corpora, tmp_path / "other")))
    shard(corpora / "math/test.jsonl.gz", "math", 30)
    refused(r"math/test\.jsonl\.gz: not the text that this study was begun with")


def measured(path: Path, model: str, *, kind: str = "dense", bits: float = 2.0, digest: str = "a") -> Path:
    """A results file of one seed: the anchor and one model on one domain."""
    rows = {"anchor": 3.0, model: bits}
    cells = [{"model": row, "domain": "math", "bits_per_byte": of, "accuracy": 0.5} for row, of in rows.items()]
    models = [{"name": "anchor", "kind": "anchor"}, {"name": model, "kind": kind}]
    domain = {"name": "math", "documents": 1, "bytes": 9, "tokens": 3, "digest": digest}
    whole = {"format": "flexo.results", "version": 1, "seed": 0, "split": "test", "max_bytes": 9, "software": {}}
    path.write_text(json.dumps(whole | {"domains": [domain], "models": models, "cells": cells}))
    return path


def test_results_of_other_text_are_not_joined(tmp_path: Path) -> None:
    one, two = measured(tmp_path / "1", "soup"), measured(tmp_path / "2", "btx")
    other = measured(tmp_path / "3", "ours", digest="b")
    join_results([one, two], tmp_path / "joined.json")
    assert [model.name for model in read_results(tmp_path / "joined.json").models] == ["anchor", "soup", "btx"]
    with pytest.raises(InputError, match="3: another domains than"):
        join_results([one, other], tmp_path / "no.json")
    assert not (tmp_path / "no.json").exists()


def test_an_ensemble_of_a_second_recipe_is_another_row(tmp_path: Path) -> None:
    parts = [
        measured(tmp_path / f"{name}.json", "BTM top-2", kind="ensemble", bits=bits)
        for name, bits in (("btm", 2.0), ("btm-steps", 1.5))
    ]
    join_results(parts, tmp_path / "joined.json")
    found = read_results(tmp_path / "joined.json")
    assert [(cell.model, cell.bits_per_byte) for cell in found.cells] == [
        ("anchor", 3.0), ("BTM top-2", 2.0), ("BTM top-2, btm-steps", 1.5)
    ]  # fmt: skip
    assert [model.name for model in found.models] == [cell.model for cell in found.cells]
