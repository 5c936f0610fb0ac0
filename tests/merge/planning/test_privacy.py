"""A merge that asks for privacy takes experts whose owners state a guarantee that does, and shows it."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
from typer.testing import CliRunner

from merge.commands.flexo_merge import app
from merge.formats.expert_file import open_expert, write_expert
from merge.formats.expert_header import StatedPrivacy
from merge.formats.manifest import read_manifest
from tests.conftest import MakeExpert
from tests.merge.tiny import STATED


def private(plain: Path, path: Path, stated: StatedPrivacy = STATED) -> Path:
    expert = open_expert(plain)
    tensors = {name: expert.tensor(name) for name in expert.tensors}
    write_expert(path, dataclasses.replace(expert.header, privacy=stated), tensors)
    return path


def merge(*words: object) -> tuple[int, str]:
    done = CliRunner().invoke(app, [str(word) for word in words])
    return done.exit_code, str(done.exception or done.output)


def test_experts_are_taken_by_their_epsilon(tmp_path: Path, make_expert: MakeExpert) -> None:
    math, code = private(make_expert("math"), tmp_path / "math.pt"), make_expert("code")
    code_, said = merge(math, "-o", tmp_path / "no", "--max-epsilon", 2)
    assert code_ == 1 and "its epsilon is 4, at most 2 is asked for" in said
    code_, said = merge(math, code, "-o", tmp_path / "no", "--require-privacy")
    assert code_ == 1 and said.startswith(str(code)) and "states no guarantee" in said
    assert not (tmp_path / "no").exists()
    code_, said = merge(math, code, "-o", tmp_path / "model", "--max-epsilon", 4, "--no-check")
    assert code_ == 0, said
    assert "CC-BY-4.0  epsilon 4" in said, "the plan shows it"
    entries = read_manifest(tmp_path / "model")["experts"]
    assert entries[1]["privacy"] == dataclasses.asdict(STATED) and entries[2]["privacy"] is None
    card = (tmp_path / "model/README.md").read_text()
    assert "epsilon 4, delta 0.001, by patient" in card


@pytest.mark.parametrize("asked", [[], ["--max-epsilon", "8"]])
def test_a_delta_that_allows_to_publish_a_document_is_no_guarantee(
    tmp_path: Path, make_expert: MakeExpert, asked: list[str]
) -> None:
    loose = private(make_expert("math"), tmp_path / "math.pt", dataclasses.replace(STATED, delta=0.5))
    code, said = merge(loose, "-o", tmp_path / "model", *asked)
    assert code == 1 and "would allow to publish one of them whole" in said
