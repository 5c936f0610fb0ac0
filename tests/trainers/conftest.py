"""Anchors that ship moments and reference text, and a short training run that the tests of this room share."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.trainers.runs import expert_arguments, shard, train_small_anchor
from trainers.expert.train import Result, train_expert


@pytest.fixture(scope="session")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Corpus folders `public`, `math` and `code` of made-up text, each with train and test."""
    folder = tmp_path_factory.mktemp("corpora")
    for name in ("public", "math", "code"):
        for split, documents in (("train", 200), ("test", 20)):
            shard(folder / name / f"{split}.jsonl.gz", name, documents)
    return folder


@pytest.fixture(scope="session")
def small_anchor(shards: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An anchor made by `train_anchor`, with everything that owners share."""
    output = tmp_path_factory.mktemp("made") / "anchor"
    train_small_anchor(shards / "public", output)
    return output


@pytest.fixture
def train(small_anchor: Path, shards: Path, tmp_path: Path) -> Callable[..., Result]:
    """`train("math", output=..., ...)`: trains an expert; keywords as of `expert_arguments`."""

    def run(domain: str = "math", /, **changes: Any) -> Result:
        return train_expert(**expert_arguments(domain, small_anchor, shards, tmp_path, **changes))

    return run
