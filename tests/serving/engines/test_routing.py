"""Tokens are routed among the experts that they may use, whatever is wrong with the others."""

from __future__ import annotations

import torch

from serving.engines.routing import route

NAN, INF = float("nan"), float("inf")


def test_only_allowed_experts_are_named_and_the_weights_are_those_of_a_smaller_model() -> None:
    dice = torch.Generator().manual_seed(0)
    logits_NE = torch.randn(200, 5, generator=dice)
    allowed_NE = torch.rand(200, 5, generator=dice) < 0.4
    allowed_NE[:, 2] |= ~allowed_NE.any(1)
    for normalise in (False, True):
        weight_NK, index_NK = route(logits_NE, allowed_NE, 3, normalise)
        assert allowed_NE.gather(1, index_NK).all()
        for logits_E, allowed_E, weight_K, index_K in zip(logits_NE, allowed_NE, weight_NK, index_NK, strict=True):
            chosen = allowed_E.nonzero()[:, 0]
            p, place = logits_E[chosen].softmax(-1).topk(min(3, len(chosen)))
            torch.testing.assert_close(weight_K[: len(p)], p / p.sum() if normalise else p)
            assert index_K[: len(p)].tolist() == chosen[place].tolist() and not weight_K[len(p) :].any()


def test_what_is_wrong_with_a_forbidden_expert_changes_nothing_and_with_an_allowed_one_lets_nobody_in() -> None:
    allowed_NE = torch.tensor([[True, False, True, False]] * 2)
    sound = route(torch.tensor([[0.3, 9.0, 1.0, -9.0]] * 2), allowed_NE, 3, False)
    for wrong in (NAN, INF, -INF, 1e30):
        found = route(torch.tensor([[0.3, wrong, 1.0, wrong]] * 2), allowed_NE, 3, False)
        assert all(map(torch.equal, found, sound))
        weight_NK, index_NK = route(torch.tensor([[0.3, 9.0, wrong, 9.0], [NAN] * 4]), allowed_NE, 3, False)
        assert set(index_NK.flatten().tolist()) <= {0, 2} and weight_NK[1].isnan().any()
