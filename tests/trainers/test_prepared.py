"""Training on what `flexo-data prepare` made gives what training on the text gives."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from flexmix.documents.corpus import find_split, held_out, read_documents
from flexmix.documents.source import Source
from flexmix.prepare.options import Options
from flexmix.prepare.pipeline import prepare
from flexo.errors import InputError
from merge.formats.anchor_folder import open_anchor
from tests.flexmix.text import write_jsonl
from tests.trainers.runs import train_small_anchor
from trainers.anchor.train import AnchorOptions
from trainers.expert.train import Result
from trainers.owner import Domain

Train = Callable[..., Result]


def prepared(source: Path, output: Path, model: Path, **options: Any) -> Path:
    prepare([Source(str(source))], output, model, Options(**options), say=lambda _line: None)
    return output


@pytest.fixture
def split(shards: Path, small_anchor: Path, tmp_path: Path) -> tuple[Path, Path, Path]:
    """The same documents as a prepared folder, and as files for training and testing."""
    texts = list(dict.fromkeys(read_documents(shards / "math/train.jsonl.gz")))
    folder = prepared(write_jsonl(tmp_path / "all.jsonl", texts), tmp_path / "prepared", small_anchor)
    train = write_jsonl(tmp_path / "train.jsonl", [text for text in texts if not held_out(text)])
    return folder, train, write_jsonl(tmp_path / "test.jsonl", [text for text in texts if held_out(text)])


def test_an_expert_is_the_same_from_text_and_from_tokens(
    train: Train, split: tuple[Path, Path, Path], tmp_path: Path
) -> None:
    folder, text, held = split
    from_tokens = train("math", domain=Domain("math", train=folder), output=tmp_path / "a.pt")
    from_text = train("math", domain=Domain("math", train=text, test=held), output=tmp_path / "b.pt")
    assert from_tokens.header.tensors == from_text.header.tensors
    assert from_tokens.header.data == from_text.header.data
    assert from_tokens.header.training == from_text.header.training
    assert from_tokens.text.said == f"prepared text: {folder}"
    assert str(tmp_path) not in from_tokens.header.to_json()


def test_a_prepared_folder_that_does_not_fit_is_refused(
    train: Train, split: tuple[Path, Path, Path], make_anchor: Callable[..., Path], tmp_path: Path
) -> None:
    folder, text, _ = split
    with pytest.raises(InputError, match=r"prepared is a prepared folder, which holds its own held-out text"):
        train("math", domain=Domain("math", train=folder, test=text))
    other = prepared(text, tmp_path / "other", make_anchor())
    with pytest.raises(InputError, match=r"other/train: made with the tokenizer .* Prepare the text for this anchor: "):
        train("math", domain=Domain("math", train=other))
    with (folder / "train/tokens.bin").open("r+b") as file:
        file.write(b"\2\0\2\0")
    with pytest.raises(InputError, match=r"prepared/train/tokens.bin: its sha256 is not the one"):
        train("math", domain=Domain("math", train=folder))
    assert not (tmp_path / "math.pt").exists()


def test_public_text_may_be_prepared(train: Train, shards: Path, small_anchor: Path, tmp_path: Path) -> None:
    public = prepared(shards / "public/train.jsonl.gz", tmp_path / "public", small_anchor)
    result = train("math", public=public)
    assert result.public == str(public) and result.header.training.public_share == 0.25


def test_an_existing_model_becomes_an_anchor_with_prepared_text(
    shards: Path, small_anchor: Path, tmp_path: Path
) -> None:
    public = prepared(shards / "public/train.jsonl.gz", tmp_path / "public", small_anchor)
    train_small_anchor(public, tmp_path / "taken", anchor=AnchorOptions(path=str(small_anchor), reference_bytes=20_000))
    shipped = list(read_documents(find_split(open_anchor(tmp_path / "taken").reference, "train")))
    given = list(read_documents(shards / "public/train.jsonl.gz"))
    assert 10 < len(shipped) < len(given) and set(shipped) <= set(given)
    with pytest.raises(InputError, match="tokens of another tokenizer, and a new anchor gets a tokenizer of its own"):
        train_small_anchor(public, tmp_path / "new")
