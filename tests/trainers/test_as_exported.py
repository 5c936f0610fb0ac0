"""Training on an owner's text as it was exported: any form, and conversations with loss on the answers alone."""

from __future__ import annotations

import json
import os
import random
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from flexmix.documents.corpus import read_documents
from flexo.errors import InputError
from tests.trainers.runs import SENTENCES, data_options
from trainers.expert.train import Result
from trainers.loop import callbacks
from trainers.owner import Domain

Train = Callable[..., Result]


def rows(count: int) -> list[dict[str, Any]]:
    """Conversations whose questions say nothing about their answers, and are longer than a window now and then."""
    dice = random.Random(count)

    def words(kind: str, most: int) -> str:
        return " ".join(dice.choices(SENTENCES[kind].split(), k=dice.randint(3, most)))

    return [
        {
            "messages": [
                {"role": "user", "content": words("code", 60)}, {"role": "assistant", "content": words("math", 12)},
            ]
        }
        for _ in range(count)
    ]  # fmt: skip


@pytest.fixture
def talks(tmp_path: Path) -> Domain:
    """Train as JSON lines, test as a JSON list. The small anchor has the plain template of our own anchors."""
    (tmp_path / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows(60)))
    (tmp_path / "test.json").write_text(json.dumps(rows(20)))
    return Domain("math", train=tmp_path / "train.jsonl", test=tmp_path / "test.json")


def test_an_expert_is_the_same_from_any_form_of_its_text(train: Train, shards: Path, tmp_path: Path) -> None:
    train_texts = list(read_documents(shards / "math/train.jsonl.gz"))
    test_texts = list(read_documents(shards / "math/test.jsonl.gz"))
    (tmp_path / "own").mkdir()
    (tmp_path / "own/train.csv").write_text("id,text\n" + "".join(f'{n},"{t}"\n' for n, t in enumerate(train_texts)))
    (tmp_path / "own/test.json").write_text(json.dumps([{"text": text} for text in test_texts]))
    usual = train("math", output=tmp_path / "a.pt")
    exported = train("math", output=tmp_path / "b.pt", domain=Domain("math", train=tmp_path / "own"))
    assert exported.header.tensors == usual.header.tensors and exported.header.training == usual.header.training
    assert exported.text.said == f"own files: {tmp_path / 'own'}"


@pytest.mark.parametrize("packing", ["concat", "best_fit"])
def test_answers_alone_are_learned_and_measured(train: Train, talks: Domain, tmp_path: Path, packing: str) -> None:
    losses = {}
    for loss_on in ("all", "assistant"):
        data = data_options(tmp_path / "tokens", public_share=0.25, packing=packing, loss_on=loss_on)
        losses[loss_on] = train(
            "math", output=tmp_path / f"{loss_on}.pt", domain=talks, data=data
        ).header.training.losses
    alone, every = losses["assistant"], losses["all"]
    assert alone.own_after is not None and alone.own_before is not None and alone.own_after < alone.own_before - 0.05
    assert alone.own_before != every.own_before, "measured on the answers, too"
    assert alone.public_before == every.public_before, "public text is measured whole"


def test_a_run_on_answers_stopped_by_a_signal_goes_on_bit_for_bit(
    train: Train, talks: Domain, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = data_options(tmp_path / "tokens", public_share=0.25, loss_on="assistant")
    undisturbed = train("math", output=tmp_path / "whole.pt", domain=talks, data=data).header.tensors
    steps: list[int] = []
    original = callbacks.TokenProgress.on_train_batch_end

    def stop_at_5(self: callbacks.TokenProgress, *args: object) -> None:
        original(self, *args)
        steps.append(1)
        if len(steps) == 5:
            os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(callbacks.TokenProgress, "on_train_batch_end", stop_at_5)
    with pytest.raises(SystemExit):
        train("math", output=tmp_path / "cut.pt", domain=talks, data=data)
    with pytest.raises(InputError, match=r"other settings \(data .*resume=false"):
        train(
            "math", output=tmp_path / "cut.pt", domain=talks, data=data_options(tmp_path / "tokens", public_share=0.25)
        )
    assert train("math", output=tmp_path / "cut.pt", domain=talks, data=data).header.tensors == undisturbed
    assert len(steps) == 12


def test_answers_of_text_that_is_no_conversation_are_refused(train: Train, talks: Domain, tmp_path: Path) -> None:
    data = data_options(tmp_path / "tokens", loss_on="assistant")
    with pytest.raises(
        InputError, match=r"train.jsonl.gz: data.loss_on=assistant, and 200 of 200 documents are no conv"
    ):
        train("math", data=data)
    with pytest.raises(InputError, match=r"data.loss_on: 'answers', expected all or assistant"):
        data_options(tmp_path / "tokens", loss_on="answers")
    assert not (tmp_path / "math.pt").exists()
