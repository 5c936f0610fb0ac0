from __future__ import annotations

import math
from typing import Any

import pytest

from flexo.model_config import position_limit, start_token


@pytest.mark.parametrize(
    ("given", "token"),
    [(7, 7), (0, 0), ([7, 9], 7), ([], None), (None, None), (-1, None), (True, None), ("7", None), ([[7]], None)],
)
def test_the_token_that_starts_documents(given: Any, token: int | None) -> None:
    assert start_token(given) == token


@pytest.mark.parametrize(
    ("given", "limit"), [(128, 128), (-1, math.inf), (0, math.inf), (None, math.inf), ("128", math.inf)]
)
def test_how_many_positions(given: Any, limit: float) -> None:
    assert position_limit(given) == limit
