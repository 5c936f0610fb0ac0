"""What a run says while it works."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from trainers.expert.train import Result


def test_every_part_of_a_run_says_how_far_it_is(
    train: Callable[..., Result], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("flexo.console.LINE_SECONDS", 0.0)
    train("math")
    said = capsys.readouterr().err
    for part in ("reading the anchor", "measuring own text", "measuring held-out text", "training math"):
        assert f"{part}: " in said
    assert "training math: 1,536 of 1,536 tokens (100%)" in said
    assert "measuring held-out text: 16 of 16 windows (100%)" in said
