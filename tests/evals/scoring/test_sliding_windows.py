from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from evals.scoring.measure import bits_per_byte
from evals.scoring.sliding_windows import BATCH_TOKENS, CPU_BATCH_TOKENS, TokenisedText, _batches, _windows, batches
from tests.inference.models import load

Texts = list[list[int]]
END = 0


@torch.no_grad()
def nats(model: Any, ids: list[int]) -> torch.Tensor:
    """Negative log-likelihood of each token but the first."""
    if len(ids) < 2:
        return torch.zeros(0)
    log_probabilities = model(torch.tensor([ids])).logits[0, :-1].double().log_softmax(-1)
    return -log_probabilities[torch.arange(len(ids) - 1), torch.tensor(ids[1:])]


def documents(*lengths: int) -> Texts:
    dice = torch.Generator().manual_seed(sum(lengths))
    return [torch.randint(1, 96, (length,), generator=dice).tolist() for length in lengths]


@pytest.fixture(params=["anchor", "merged"])
def model(request: pytest.FixtureRequest, tiny_anchor: Path, merged: Path) -> Any:
    return load(tiny_anchor if request.param == "anchor" else merged)


# --- windows


@given(st.integers(1, 80), st.integers(2, 20))
def test_each_token_is_scored_once_from_at_least_half_a_window(size: int, length: int) -> None:
    """Or from its whole document so far, at the beginning."""
    ids = list(range(size))  # a token is its place
    scored = []
    for window, first, _ in _windows(ids, length):
        assert 1 <= len(window) <= length
        assert window == list(range(window[0], window[0] + len(window)))
        for place in range(first, len(window)):
            assert place >= length / 2 or window[0] == 0
            scored.append(window[place])
    assert scored == ids[1:]


def test_windows_are_as_drawn() -> None:
    assert [("".join(window), first) for window, first, _ in _windows(list("Eabcdefgh"), 4)] == [  # type: ignore[arg-type]
        ("Eabc", 1), ("bcde", 2), ("defg", 2), ("fgh", 2),
    ]  # fmt: skip


@given(st.lists(st.integers(1, 30), max_size=30).map(sorted), st.integers(1, 100))
def test_batches_hold_every_window_once_within_their_size(sizes: list[int], tokens: int) -> None:
    windows = [([0] * size, 1, [0] * size) for size in sizes]
    found = list(_batches(windows, tokens))
    assert [window for batch in found for window in batch] == windows
    for batch in found:
        assert len(batch) * max(len(ids) for ids, _, _ in batch) <= tokens or len(batch) == 1


@pytest.mark.parametrize(("device", "most"), [("cpu", CPU_BATCH_TOKENS), ("meta", BATCH_TOKENS)])
def test_a_device_is_given_what_suits_it(device: str, most: int) -> None:
    text = TokenisedText(documents(*[63] * (BATCH_TOKENS // 64 + 1)), 1, END)
    first, *rest = (batch.x_BT for batch in batches(text, 64, device=device))
    assert first.device.type == device and first.numel() == most and rest


# --- bits


def test_short_documents_are_scored_whole_and_alone(model: Any) -> None:
    texts = documents(20, 1, 7, 19, 0, 3)
    expected = sum(nats(model, [END, *ids]).sum().item() for ids in texts)
    text = TokenisedText(texts, 123, END)
    assert text.tokens == 50
    assert bits_per_byte(model, text, length=32) == pytest.approx(expected / math.log(2) / 123, rel=1e-6)


def test_long_documents_are_scored_window_by_window(model: Any) -> None:
    """Token t of a document is predicted from the window that the drawing gives it."""
    length, stride = 10, 5
    texts = documents(57, 10, 9, 4)
    expected = 0.0
    for document in texts:
        ids = [END, *document]
        for place in range(1, len(ids)):
            start = 0 if place < length else (place - length) // stride * stride + stride
            assert place < length or length / 2 <= place - start < length
            expected += nats(model, ids[start : place + 1])[-1].item()
    found = bits_per_byte(model, TokenisedText(texts, 80, END), length=length)
    assert found == pytest.approx(expected / math.log(2) / 80, rel=1e-6)


@pytest.mark.parametrize("batch_tokens", [1, 40, 100, 10_000])
def test_batching_padding_and_order_do_not_matter(model: Any, batch_tokens: int) -> None:
    texts = documents(45, 3, 30, 16, 2, 2, 17)
    whole = bits_per_byte(model, TokenisedText(texts, 100, END), length=16)
    other = TokenisedText(list(reversed(texts)), 100, END)
    assert bits_per_byte(model, other, length=16, batch_tokens=batch_tokens) == pytest.approx(whole, rel=1e-6)


def test_what_stands_behind_a_window_cannot_be_seen(model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    texts = documents(3, 30)
    before = bits_per_byte(model, TokenisedText(texts, 9, END))
    full = torch.full
    monkeypatch.setattr(torch, "full", lambda size, _end: full(size, 77))  # another padding
    assert bits_per_byte(model, TokenisedText(texts, 9, END)) == before


def test_progress_counts_every_token_once(model: Any) -> None:
    told: list[float] = []
    text = TokenisedText(documents(45, 3, 30), 100, END)
    bits_per_byte(model, text, length=16, batch_tokens=40, advance=told.append)
    assert sum(told) == text.tokens == 78 and len(told) > 3


def test_a_model_that_knows_nothing_needs_all_bits(make_anchor: Callable[..., Path]) -> None:
    model = load(make_anchor())
    model.lm_head.weight.data.zero_()
    text = TokenisedText(documents(40, 24), 64, END)  # one byte a token
    assert bits_per_byte(model, text, length=16) == pytest.approx(math.log2(96), rel=1e-6)
