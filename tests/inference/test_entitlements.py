"""Sequences of one batch, each with its own experts."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import torch

from flexo.errors import InputError
from inference.select import select_experts
from tests.inference.models import load
from tests.inference.test_select import IMPLEMENTATIONS, state

import_module("setuptools")  # torch.compile does, which fails where another test has imported distutils before
X = torch.randint(1, 96, (3, 40), generator=torch.Generator().manual_seed(0))
CHOICES = [["public", "math"], ["public"], ["public", "math", "news", "code"]]
GENERATE: dict[str, Any] = {"max_new_tokens": 12, "min_new_tokens": 12, "do_sample": False}


@torch.no_grad()
def logits(model: Any, choices: Any, rows: slice = slice(None)) -> torch.Tensor:
    with select_experts(model, choices):
        found: torch.Tensor = model(X[rows]).logits
    return found


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_each_sequence_computes_what_its_selection_does_for_the_batch_and_alone(
    merged: Path, implementation: str
) -> None:
    """To 1e-6, in float32."""
    model = load(merged, experts_implementation=implementation)
    together = logits(model, CHOICES)
    for row, choice in enumerate(CHOICES):
        assert (together[row] - logits(model, choice)[row]).abs().max() <= 1e-6
        assert (together[row] - logits(model, choice, slice(row, row + 1))[0]).abs().max() <= 1e-6
        assert row == 2 or (together[row] - logits(model, CHOICES[2])[row]).abs().max() > 1e-2


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize("value", [float("nan"), 1e30])
def test_experts_of_others_have_no_influence(merged: Path, implementation: str, value: float) -> None:
    """Nor has what the others may use: the first two sequences come out the same bits."""
    model = load(merged, experts_implementation=implementation)
    expected = logits(model, CHOICES)
    assert torch.equal(logits(model, [*CHOICES[:2], ["news"]])[:2], expected[:2])
    for layer in model.model.layers:
        for weight in (layer.mlp.gate.weight, layer.mlp.experts.gate_up_proj, layer.mlp.experts.down_proj):
            weight.data[2:] = value
    found = logits(model, CHOICES)
    torch.testing.assert_close(found[:2], expected[:2], rtol=0, atol=1e-6 * expected.abs().max().item())
    assert not torch.equal(found[2], expected[2])
    nobodys = [["public", "math"], ["public"], ["math"]]
    healthy = load(merged, experts_implementation=implementation)
    assert torch.equal(logits(model, nobodys), logits(healthy, nobodys))


def test_the_same_selection_for_each_is_that_selection(merged: Path) -> None:
    model = load(merged)
    assert torch.equal(
        logits(model, [["math", "public"], *[["public", "math"]] * 2]), logits(model, ["public", "math"])
    )


@pytest.mark.parametrize("cache", [{}, {"cache_implementation": "static"}])
def test_generated_text_is_that_of_each_alone(merged: Path, cache: dict[str, str]) -> None:
    model = load(merged)
    with select_experts(model, CHOICES):
        together = model.generate(X[:, :5], **GENERATE, **cache)
    for row, choice in enumerate(CHOICES):
        with select_experts(model, choice):
            assert torch.equal(model.generate(X[row : row + 1, :5], **GENERATE, **cache)[0], together[row])


def test_beams_need_a_selection_each(merged: Path) -> None:
    model = load(merged)
    before = state(model)
    options = GENERATE | {"num_beams": 3, "num_return_sequences": 2}
    with (
        pytest.raises(InputError, match=r"a batch of 9 sequences, experts are selected for 3\. .* repeat it as often"),
        select_experts(model, CHOICES),
    ):
        model.generate(X[:, :5], **options)
    assert state(model) == before
    with select_experts(model, [choice for choice in CHOICES for _ in range(3)]):
        together = model.generate(X[:, :5], **options)
    for row, choice in enumerate(CHOICES):
        with select_experts(model, choice):
            alone = model.generate(X[row : row + 1, :5], **options)
        assert torch.equal(together[2 * row : 2 * row + 2], alone)


def test_a_top_k_fits_every_selection(merged: Path) -> None:
    model = load(merged)
    with pytest.raises(InputError, match="top_k 2: 1 experts are selected"), select_experts(model, CHOICES, 2):
        raise AssertionError("not reached")
    with pytest.raises(InputError, match=r"experts \(none\)"), select_experts(model, [["public"], []]):
        raise AssertionError("not reached")


@pytest.mark.slow  # a compiler runs for each kind of selection
def test_a_compiled_model_never_runs_what_was_compiled_for_another_selection(merged: Path) -> None:
    model = load(merged)
    compiled: Any = torch.compile(model)
    with torch.no_grad():
        for choices in (None, ["public", "math"], ["public", "news"], CHOICES, [["public"], ["news"], ["math"]], None):
            if choices is None:
                found, expected = compiled(X).logits, model(X).logits
            else:
                with select_experts(model, choices):
                    found, expected = compiled(X).logits, model(X).logits
            torch.testing.assert_close(found, expected, rtol=0, atol=2e-5)
