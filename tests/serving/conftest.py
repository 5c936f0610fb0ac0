from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.inference.models import merge_domains
from tests.serving.asked import Alone, alone, requests


@pytest.fixture(scope="session")
def served(make_expert: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A merged folder of public, math, news and code, three active; for all tests of a session."""
    return merge_domains(make_expert, tmp_path_factory.mktemp("served") / "model", top_k=3)


@pytest.fixture(scope="session")
def expected(served: Path) -> list[Alone]:
    """What each of the thirty requests gets alone, under `select_experts`."""
    return alone(served, requests())
