from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.inference.models import merge_domains


@pytest.fixture(scope="session")
def merged(make_expert: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A merged folder of public, math, news and code, three active; for all tests of a session."""
    return merge_domains(make_expert, tmp_path_factory.mktemp("merged") / "model", top_k=3)


@pytest.fixture
def copied(merged: Path, tmp_path: Path) -> Path:
    """The merged folder as a copy that a test may damage."""
    return Path(shutil.copytree(merged, tmp_path / "copied"))
