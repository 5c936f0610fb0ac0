"""Who made each generated token: compared with what the routers say about the finished text."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch

from flexo.errors import InputError, ModelFolderError
from inference.attribution import Answer, attribute
from inference.select import select_experts
from tests.inference.models import load, merge_domains
from tests.inference.test_select import IMPLEMENTATIONS, state

X = torch.randint(1, 96, (3, 6), generator=torch.Generator().manual_seed(5))
P, T = X.shape[1], 6
OPTIONS: dict[str, Any] = {"max_new_tokens": T, "min_new_tokens": T, "do_sample": False}
NAMES = ["public", "math", "news", "code"]


@torch.no_grad()
def expected(model: Any, x_BS: torch.Tensor) -> torch.Tensor:
    """Router weights [B, T, L, E] behind the tokens after the prompt, from one pass over the finished text."""
    logits = model(x_BS, output_router_logits=True, use_cache=False).router_logits
    p_BSLE = torch.stack([part.view(*x_BS.shape, -1) for part in logits], 2).softmax(-1)
    weight_BSLK, index_BSLK = p_BSLE.topk(model.config.num_experts_per_tok)
    return torch.zeros_like(p_BSLE).scatter_(-1, index_BSLK, weight_BSLK)[:, P - 1 : -1]


def weights(answers: list[Answer]) -> torch.Tensor:
    for answer in answers:
        assert answer.weight_TLE.dtype == torch.float64 and (answer.weight_TLE >= 0).all()
        for share in (answer.share_TLE, answer.share_TE, answer.share_LE):
            torch.testing.assert_close(share.sum(-1), torch.ones_like(share.sum(-1)), rtol=0, atol=1e-12)
        assert list(answer.shares) == NAMES and abs(sum(answer.shares.values()) - 1) < 1e-12
    return torch.stack([answer.weight_TLE for answer in answers])


CACHES: list[dict[str, Any]] = [
    {}, {"cache_implementation": "static"}, {"use_cache": False}, {"prefill_chunk_size": 4},
]  # fmt: skip
WAYS = [*((name, CACHES[0]) for name in IMPLEMENTATIONS), *(("grouped_mm", cache) for cache in CACHES[1:])]


@pytest.mark.parametrize(("implementation", "cache"), WAYS, ids=str)
def test_weights_are_those_of_the_finished_text(merged: Path, implementation: str, cache: dict[str, Any]) -> None:
    model = load(merged, experts_implementation=implementation)
    plain = model.generate(X, **OPTIONS, **cache)
    with attribute(model) as record:
        x_BS = model.generate(X, **OPTIONS, **cache)
    assert torch.equal(x_BS, plain)
    answers = record.answers(x_BS, P)
    assert [answer.tokens for answer in answers] == x_BS[:, P:].tolist()
    found = weights(answers)
    torch.testing.assert_close(found.float(), expected(model, x_BS), rtol=0, atol=1e-5)
    assert ((found > 0).sum(-1) == 3).all()
    torch.testing.assert_close(record.latest(), torch.stack([answer.share_TE[-1] for answer in answers]))


@pytest.mark.parametrize("inside", [False, True])
def test_experts_that_are_not_selected_have_exactly_no_share(
    merged: Path, make_expert: Callable[..., Path], tmp_path: Path, inside: bool
) -> None:
    """And the others have those of a model merged without it, whichever block is around the other."""
    model, without = load(merged), load(merge_domains(make_expert, tmp_path / "without", ["news"]))
    if inside:
        with select_experts(model, ["public", "news"]), attribute(model) as record:
            x_BS = model.generate(X, **OPTIONS)
    else:
        with attribute(model) as record, select_experts(model, ["public", "news"]):
            x_BS = model.generate(X, **OPTIONS)
    answers = record.answers(x_BS, P)
    assert all(answer.shares["math"] == answer.shares["code"] == 0.0 for answer in answers)
    torch.testing.assert_close(weights(answers)[..., [0, 2]].float(), expected(without, x_BS), rtol=0, atol=1e-5)


def test_sequences_have_their_own_answers(merged: Path) -> None:
    """In one batch with different selections and lengths, each is credited as it is alone."""
    model = load(merged)
    choices = [["public", "math"], ["code"], NAMES]
    with attribute(model) as record, select_experts(model, choices):
        x_BS = model.generate(X, **OPTIONS)
        together = record.answers(x_BS, P)
    assert together[1].shares == dict.fromkeys(NAMES, 0.0) | {"code": 1.0}
    for row, choice in enumerate(choices):
        with select_experts(model, choice), attribute(model) as record:
            alone = record.answers(model.generate(X[row : row + 1], **OPTIONS), P)
        assert alone[0].tokens == together[row].tokens
        assert {name for name, share in together[row].shares.items() if share} <= set(choice)
        torch.testing.assert_close(weights(alone)[0], weights([together[row]])[0], rtol=0, atol=1e-5)


def test_a_layer_of_equal_experts_credits_nobody(merged: Path) -> None:
    """As in a context layer, whatever its router likes; where all layers are such, each counts."""
    model = load(merged)
    first = model.model.layers[0].mlp
    with torch.no_grad():
        for weight in first.experts.parameters():
            weight[:] = weight[:1].clone()
        first.gate.weight[:] = torch.tensor([0.0, 0.0, 1.0, 0.0])[:, None] * 1e3 * first.gate.weight[2]
    with attribute(model) as record:
        x_BS = model.generate(X, **OPTIONS)
        answers = record.answers(x_BS, P)
    torch.testing.assert_close(weights(answers).float(), expected(model, x_BS), rtol=0, atol=1e-5)
    for answer in answers:
        assert answer.chooses == [False, True, True]
        torch.testing.assert_close(answer.share_TE, answer.share_TLE[:, 1:].mean(1))
        assert not torch.allclose(answer.share_TE, answer.share_TLE.mean(1), atol=0.01)
    torch.testing.assert_close(record.latest(), torch.stack([answer.share_TE[-1] for answer in answers]))
    for layer in model.model.layers:
        for weight in layer.mlp.experts.parameters():
            weight.data[:] = weight.data[:1].clone()
    with attribute(model) as record:
        (answer, *_) = record.answers(model.generate(X, **OPTIONS), P)
    assert answer.chooses == [True] * 3
    torch.testing.assert_close(answer.share_TE, answer.share_TLE.mean(1))


def test_nothing_is_credited_for_padding(merged: Path) -> None:
    """Neither before a short prompt nor behind an early end; a repeated generate counts alone."""
    model = load(merged)
    long, short = X[:1], X[1:2, :4]
    padded = torch.cat([long, torch.cat([torch.zeros(1, 2, dtype=torch.long), short], 1)])
    mask = torch.tensor([[1] * 6, [0, 0, *[1] * 4]])
    options = {"max_new_tokens": T, "do_sample": False, "pad_token_id": 0}
    whole = model.generate(padded, attention_mask=mask, **options)
    end = int(whole[1, P + 2])
    model.generation_config.eos_token_id = [end]
    with attribute(model) as record:
        record_of_long = record.answers(model.generate(long, **options), P)
        together = record.answers(model.generate(padded, attention_mask=mask, **options), P)
        record_of_short = record.answers(model.generate(short, **options), 4)
    assert together[1].tokens[-1] == end and len(together[1].tokens) <= 3 < len(together[0].tokens)
    for found, alone in zip(together, (*record_of_long, *record_of_short), strict=True):
        assert found.tokens == alone.tokens
        torch.testing.assert_close(weights([found]), weights([alone]), rtol=0, atol=1e-5)


def test_low_precision_and_samples_sum_to_one_too(merged: Path) -> None:
    model = load(merged, dtype=torch.bfloat16)
    with attribute(model) as record:
        x_BS = model.generate(X[:1], min_new_tokens=5, max_new_tokens=5, do_sample=True, num_return_sequences=4)
    assert len(record.answers(x_BS, P)) == 4
    weights(record.answers(x_BS, P))


def test_what_cannot_be_attributed_is_refused(merged: Path) -> None:
    model = load(merged)
    with attribute(model) as record:
        x_BS = model.generate(X, **OPTIONS)
        other = x_BS.clone()
        other[1, P + 3] += 1
        for sequences, prompt in ((x_BS, P - 1), (x_BS, P + T), (x_BS, 0), (x_BS[:2], P), (other, P)):
            with pytest.raises(InputError, match="not made by the last forward passes"):
                record.answers(sequences, prompt)
        assert len(record.answers(x_BS, P)) == 3
        beams = model.generate(X, num_beams=3, num_return_sequences=3, **OPTIONS)
        with pytest.raises(InputError, match="beams and assisted generation cannot be attributed"):
            record.answers(beams, P)
        with pytest.raises(InputError, match="attributed already"), attribute(model):
            raise AssertionError("not reached")
        model.model.layers[1].mlp.gate.weight.data[1] = torch.nan
        with pytest.raises(InputError, match="not finite"):
            record.answers(model.generate(X, **OPTIONS), P)


def test_anchors_have_no_experts_to_credit(tiny_anchor: Path) -> None:
    with pytest.raises(ModelFolderError, match=r"no manifest\.json"), attribute(load(tiny_anchor)):
        raise AssertionError("not reached")


@pytest.mark.parametrize("selected", [False, True])
def test_the_model_is_left_as_it_was(merged: Path, selected: bool) -> None:
    model = load(merged)
    names, before = list(model.state_dict()), state(model)
    with (
        pytest.raises(KeyboardInterrupt),
        select_experts(model, ["public", "code"]) if selected else nullcontext(),
        attribute(model),
    ):
        raise KeyboardInterrupt
    assert list(model.state_dict()) == names and state(model) == before
    assert torch.equal(model.generate(X, **OPTIONS), load(merged).generate(X, **OPTIONS))


@pytest.mark.slow  # a compiler traces the model for each selection
def test_a_compiled_model_is_attributed(merged: Path) -> None:
    model = load(merged)
    compiled: Any = torch.compile(model, backend="eager")
    with torch.no_grad():
        compiled(X)
        for choice in (["public", "news"], NAMES):
            found = []
            for run in (compiled, model):
                with select_experts(model, choice), attribute(model) as record:
                    next_B1 = run(X).logits[:, -1:].argmax(-1)
                found.append(weights(record.answers(torch.cat([X, next_B1], 1), P)))
            torch.testing.assert_close(*found, rtol=0, atol=1e-5)
