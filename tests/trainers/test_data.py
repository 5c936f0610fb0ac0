"""Which text an owner trains on: one source or a mixture, and how mistakes in naming them are told."""

from __future__ import annotations

from pathlib import Path

import pytest
from omegaconf import OmegaConf

from flexo.errors import InputError
from trainers.data import DataOptions, WeightedText, find_own_text
from trainers.entry.hydra_entry import read


def test_a_mixture_names_files_and_folders(shards: Path) -> None:
    sources = (WeightedText(shards / "math", 2.0), WeightedText(shards / "code/train.jsonl.gz"))
    text = find_own_text("both", Path("nowhere"), None, shards / "math/test.jsonl.gz", None, sources)
    assert [source.path for source in text.train] == [shards / f"{name}/train.jsonl.gz" for name in ("math", "code")]
    assert [source.weight for source in text.train] == [2.0, None]
    with pytest.raises(InputError, match="news: no such file or folder"):
        find_own_text("both", Path("nowhere"), None, None, None, (WeightedText(shards / "news"),))


def test_a_mixture_is_read_from_settings_and_mistyped_keys_are_named() -> None:
    def options(*sources: dict[str, object]) -> DataOptions:
        return read(OmegaConf.create({"data": {"tokens": 1, "mixture": list(sources)}}), "data", DataOptions)

    assert options({"path": "a.jsonl", "weight": 3}).mixture == (WeightedText(Path("a.jsonl"), 3.0),)
    assert options({"path": "a.jsonl"}).settings() == options({"path": "b.jsonl"}).settings(), "digests say which text"
    assert options({"path": "a", "weight": 1}).settings() != options({"path": "a", "weight": 2}).settings()
    with pytest.raises(InputError, match=r"data\.mixture\.0\.wieght"):
        options({"path": "a.jsonl", "wieght": 3})
