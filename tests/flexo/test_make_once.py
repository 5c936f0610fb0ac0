from __future__ import annotations

from pathlib import Path

import pytest

from flexo.errors import InputError
from flexo.make_once import keep
from tests.merge.tools import listing


def test_a_folder_is_filled_once(tmp_path: Path) -> None:
    keep(tmp_path / "a/b", lambda folder: (folder / "first").touch())
    keep(tmp_path / "a/b", lambda folder: (folder / "second").touch())
    assert listing(tmp_path / "a") == {"b"} and listing(tmp_path / "a/b") == {"first"}


def test_nothing_stays_of_a_folder_that_was_refused(tmp_path: Path) -> None:
    def fill(folder: Path) -> None:
        (folder / "half").touch()
        raise InputError("no")

    with pytest.raises(InputError, match=r"^no$"):
        keep(tmp_path / "a/b", fill)
    assert listing(tmp_path) == set()


def test_the_first_of_two_to_finish_wins(tmp_path: Path) -> None:
    def slow(folder: Path) -> None:
        (tmp_path / "a").mkdir()
        (tmp_path / "a/quick").touch()
        (folder / "slow").touch()

    keep(tmp_path / "a", slow)
    assert listing(tmp_path) == {"a"} and listing(tmp_path / "a") == {"quick"}
