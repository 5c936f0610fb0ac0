from __future__ import annotations

from pathlib import Path

from trainers.loop.loggers import run_id
from trainers.loop.run_folder import CHECKPOINT


def test_a_run_keeps_its_id_as_long_as_it_goes_on(tmp_path: Path) -> None:
    first = run_id(tmp_path)
    second = run_id(tmp_path)
    assert len(first) == 8 and first != second, "nothing to go on from: another run"
    (tmp_path / CHECKPOINT).touch()
    assert run_id(tmp_path) == run_id(tmp_path) == second
    (tmp_path / CHECKPOINT).unlink()
    assert run_id(tmp_path) != second
