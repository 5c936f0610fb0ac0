"""`flexo-optout`: what it says, and what it refuses."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

import merge.commands.flexo_merge
from merge.commands.flexo_optout import main
from tests.merge.tools import call, listing

Make = Callable[..., Path]


@pytest.fixture
def model(make_expert: Make, tmp_path: Path) -> Path:
    """public, math and news."""
    assert (
        call(merge.commands.flexo_merge.main, make_expert("math"), make_expert("news"), "-o", tmp_path / "model") == 0
    )
    return tmp_path / "model"


def test_keep_is_the_inverse_of_drop(model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert call(main, model, "--drop", "news", "-o", tmp_path / "dropped") == 0
    assert "left: news" in capsys.readouterr().out
    assert call(main, model, "--keep", "math", "-o", tmp_path / "kept") == 0
    assert "byte for byte" in capsys.readouterr().out
    weights = [(tmp_path / name / "model.safetensors").read_bytes() for name in ("dropped", "kept")]
    assert weights[0] == weights[1]


def test_a_trained_router_is_said_to_have_seen_who_left(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    manifest = json.loads((model / "manifest.json").read_text())
    (model / "manifest.json").write_text(json.dumps(manifest | {"router_training": {"tokens": 5}}))
    assert call(main, model, "--drop", "news", "-o", tmp_path / "left") == 0
    out = capsys.readouterr().out
    assert "rows that stay were trained beside news" in out and "byte for byte" not in out
    assert json.loads((tmp_path / "left" / "manifest.json").read_text())["router_training"] == {"tokens": 5}


def test_nothing_is_promised_of_tensors_that_were_compared_with_nothing(
    make_expert: Make, model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    experts = [make_expert("math"), make_expert("news")]
    assert call(merge.commands.flexo_merge.main, *experts, "-o", tmp_path / "unread", "--no-verify", "--no-check") == 0
    capsys.readouterr()
    for folder, options, why in ((tmp_path / "unread", [], "no digests"), (model, ["--no-verify"], "--no-verify")):
        assert call(main, folder, "--drop", "news", "-o", tmp_path / f"left-{folder.name}", *options) == 0
        out = capsys.readouterr().out
        assert f"compared with nothing ({why}" in out.replace("the manifest lists ", "") and "byte for byte" not in out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--drop", "public"], "public: the anchor's own expert"),
        (["--drop", "mth"], "Did you mean 'math'?"),
        (["--keep", "nws"], "Did you mean 'news'?"),
        (["--drop", "math", "--drop", "news"], "only the public expert would be left"),
        (["--keep", "public"], "only the public expert would be left"),
        (["--keep", "math", "--keep", "news"], "so none would leave"),
    ],
)
def test_refusals_write_nothing(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    assert call(main, model, *arguments, "-o", tmp_path / "new") == 1
    assert message in capsys.readouterr().err and listing(tmp_path) == {"model"}


def test_a_model_is_never_changed_in_place(model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = listing(model)
    for output in (model, model / "inside"):
        assert call(main, model, "--drop", "news", "-o", output) == 1
        assert "never changed in place" in capsys.readouterr().err
    assert listing(model) == before


def test_damage_is_refused_and_nothing_stays(model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = bytearray((model / "model.safetensors").read_bytes())
    data[-1] ^= 1  # a weight of the last expert
    (model / "model.safetensors").write_bytes(data)
    assert call(main, model, "--drop", "math", "-o", tmp_path / "new") == 1
    assert "does not match the sha256" in capsys.readouterr().err and listing(tmp_path) == {"model"}


def test_drop_and_keep_exclude_each_other(model: Path, tmp_path: Path) -> None:
    for arguments in ([], ["--drop", "math", "--keep", "news"]):
        assert call(main, model, *arguments, "-o", tmp_path / "new") == 2
