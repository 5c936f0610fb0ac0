"""Loss on answers alone, against the definition, in both packings, mixed, resumed and on several devices."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from flexmix.packing.answers import check_loss_on
from flexmix.packing.best_fit import BestFit
from flexmix.packing.datamodule import BatchOptions, TextModule
from flexmix.packing.loaders import Stream
from flexmix.packing.windows import NO_LABEL, Packed, Windows
from flexmix.tokens.shard import TokenShard
from flexo.errors import InputError
from tests.flexmix.packing.test_loaders import E, same, shard_of, windows_of

# a document is its tokens after the first, and which of them are answers; the last entry: whether its end is learned
Talk = tuple[list[int], list[bool]]
talks = st.lists(
    st.lists(st.tuples(st.integers(0, 9), st.booleans()), min_size=1, max_size=14).map(
        lambda pairs: ([token for token, _ in pairs], [*(answer for _, answer in pairs), pairs[-1][1]])
    ),
    min_size=1,
    max_size=8,
)  # token 0 is E: a template may write it inside


def conversations_of(documents: list[Talk]) -> tuple[TokenShard, list[bool]]:
    """A shard in memory, and for each token of it, and the end behind, whether it is an answer's."""
    shard = replace(shard_of(ids for ids, _ in documents), conversations=len(documents))
    flags = [False]
    for ids, answers in documents:
        assert len(answers) == len(ids) + 1
        flags += [*answers[:-1], answers[-1]]  # the last one is the E of the next document
    shard.__dict__["starts"] = np.cumsum([0, *(1 + len(ids) for ids, _ in documents)])
    shard.__dict__["ids"] = np.array([i for ids, _ in documents for i in (E, *ids)], dtype=np.uint16)
    edges = np.flatnonzero(np.diff(np.array([0, *map(int, flags), 0])))
    shard.__dict__["answers"] = edges.reshape(-1, 2)
    return shard, flags


def rows(windows: Packed) -> list[tuple[list[int], list[int], list[int]]]:
    batch = windows.read(np.arange(len(windows)))
    return list(zip(*(batch[name].tolist() for name in ("input_ids", "labels", "position_ids")), strict=True))


@given(talks, st.integers(1, 9))
def test_concatenated_windows_label_the_answers_alone(documents: list[Talk], length: int) -> None:
    shard, flags = conversations_of(documents)
    stream = shard.ids.tolist()
    starts = set(shard.starts.tolist())
    expected = []
    for first in range(0, (len(stream) - 1) // length * length, length):
        labels = [stream[at] if flags[at] else NO_LABEL for at in range(first + 1, first + length + 1)]
        positions: list[int] = []
        for at in range(first, first + length):
            positions.append(0 if at in starts or not positions else positions[-1] + 1)
        if set(labels) != {NO_LABEL}:
            expected.append((stream[first : first + length], labels, positions))
    if not expected:
        with pytest.raises(
            InputError, match=r"here: (data.loss_on=assistant, and there is no message|its only answers|\d+ )"
        ):
            Windows(shard, length, "here", "assistant")
        return
    assert rows(Windows(shard, length, "here", "assistant")) == expected


@given(talks, st.integers(1, 9))
def test_best_fit_labels_the_answers_alone_and_loses_none(documents: list[Talk], length: int) -> None:
    shard, flags = conversations_of(documents)
    if not any(flags):
        with pytest.raises(InputError, match="there is no message of the role 'assistant'"):
            BestFit(shard, length, "here", "assistant")
        return
    expected: Counter[tuple[tuple[int, ...], tuple[int, ...]]] = Counter()
    stream = [*shard.ids.tolist(), E]
    for start, end in zip(shard.starts[:-1].tolist(), shard.starts[1:].tolist(), strict=True):
        for first in range(start, end, length):
            last = min(first + length, end)
            labels = tuple(stream[at] if flags[at] else NO_LABEL for at in range(first + 1, last + 1))
            if set(labels) != {NO_LABEL}:
                expected[tuple(stream[first:last]), labels] += 1
    found: Counter[tuple[tuple[int, ...], tuple[int, ...]]] = Counter()
    windows = BestFit(shard, length, "here", "assistant")
    for x, y, place in rows(windows):
        assert set(y) != {NO_LABEL}, "a window that teaches nothing"
        begins = [at for at in range(length) if place[at] == 0]
        for first, last in zip(begins, [*begins[1:], length], strict=True):
            assert place[first:last] == list(range(last - first))
            if set(y[first:last]) != {NO_LABEL}:
                found[tuple(x[first:last]), tuple(y[first:last])] += 1
    assert found == expected
    assert windows.padding == pytest.approx(
        1 - sum(len(x) * n for (x, _), n in expected.items()) / len(windows) / length
    )


def test_an_end_of_text_inside_a_conversation_does_not_end_it() -> None:
    """As OLMo's template writes it behind each answer: the turns that follow still see those before."""
    shard, _ = conversations_of([([5, 6, E, 7, 8], [False] * 5 + [True])])
    for windows in (Windows(shard, 5, "here"), BestFit(shard, 6)):
        assert windows.read(np.arange(1))["position_ids"][0, :5].tolist() == [0, 1, 2, 3, 4]


def test_what_is_no_conversation_is_refused() -> None:
    plain = shard_of([[1, 2, 3]] * 4)
    half = replace(plain, conversations=1)
    half.__dict__.update(ids=plain.ids, starts=plain.starts, answers=np.array([[2, 3]]))
    for shard, count in ((plain, 4), (half, 3)):
        for make in (lambda s: Windows(s, 4, "here", "assistant"), lambda s: BestFit(s, 4, "here", "assistant")):
            with pytest.raises(
                InputError, match=rf"here: data.loss_on=assistant, and {count} of 4 documents are no conv"
            ):
                make(shard)
    with pytest.raises(InputError, match=r"data.loss_on: 'user', expected all or assistant"):
        check_loss_on("user")


# --- in a run


def module(packing: str, **options: Any) -> TextModule:
    documents: list[Talk] = [(list(range(10 * n + 1, 10 * n + 9)), [False] * 4 + [n % 3 != 0] * 5) for n in range(12)]
    shard, _ = conversations_of(documents)
    loss_on = options.pop("loss_on", "assistant")
    own: Packed = Windows(shard, 6, "own", loss_on) if packing == "concat" else BestFit(shard, 6, "own", loss_on)
    given_ = BatchOptions(4, 9, 5, public_share=0.25, **options)
    return TextModule(own, {"own": own}, given_, windows_of(3, length=6, first=1001))


@pytest.mark.parametrize("packing", ["concat", "best_fit"])
def test_a_run_goes_on_with_the_same_answers(packing: str) -> None:
    whole = list(module(packing).train_dataloader())
    for batch in whole:
        labelled = (batch["labels"] != NO_LABEL).sum(1)
        assert (labelled > 0).all(), "every row teaches something"
        assert (labelled[~batch["own"]] == 6).all(), "public text is learned whole"
    first = module(packing)
    batches = iter(first.train_dataloader())
    read = [next(batches) for _ in range(4)]
    second = module(packing)
    second.load_state_dict(json.loads(json.dumps(first.state_dict())))
    assert all(map(same, [*read, *second.train_dataloader()], whole))
    with pytest.raises(InputError, match=r"over other batches: own was .*'loss_on': 'assistant'.*resume=false"):
        module(packing, loss_on="all").load_state_dict(first.state_dict())


def test_the_order_of_a_run_on_all_tokens_is_called_what_it_was(tmp_path: Path) -> None:
    """So that checkpoints from before there were answers go on."""
    assert Stream(windows_of(3), 0).order() == [
        {"packing": "concat", "seed": 0, "windows": 3, "length": 4, "tokens": 13}
    ]


def test_every_device_has_labels() -> None:
    for packing in ("concat", "best_fit"):
        loader = module(packing, parts=2).train_dataloader()
        assert all(bool((batch["labels"] != NO_LABEL).any(1).all()) for batch in loader)
        assert torch.is_tensor(next(iter(loader))["labels"])
