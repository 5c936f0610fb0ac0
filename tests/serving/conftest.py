from __future__ import annotations

import gc
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from inference.load import load_model
from tests.inference.models import merge_domains
from tests.serving.asked import Alone, alone, requests
from tests.serving.live import Live, live


@pytest.fixture(scope="session")
def served(make_expert: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A merged folder of public, math, news and code, three active; for all tests of a session."""
    folder = merge_domains(make_expert, tmp_path_factory.mktemp("served") / "model", top_k=3)
    load_model(folder)
    gc.collect()
    gc.freeze()  # transformers collects garbage whenever an engine stops, and walks through all that was imported
    return folder


@pytest.fixture(scope="session")
def expected(served: Path) -> list[Alone]:
    """What each of the thirty requests gets alone, under `select_experts`."""
    return alone(served, requests())


LIMITS = {"requests_per_minute": 10**6, "tokens_per_day": 10**9, "at_once": 64}
KEYS = {
    "all": {"experts": ["public", "math", "news", "code"]},
    "two": {"experts": ["public", "math", "gone"]},
    "other": {"experts": ["public", "math"]},
    "gone": {"experts": ["gone"]},
}


@pytest.fixture(scope="session")
def server(served: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Live]:
    """A server that all tests of a session share: keys `all`, `two`, `other` of the same experts, and `gone`."""
    keys = {name: allowed | LIMITS for name, allowed in KEYS.items()}
    with live(tmp_path_factory.mktemp("serving"), served, keys, body_bytes=300_000) as running:
        yield running
