"""The mean that rows start from: each unit bounded, and right where nothing is."""

from __future__ import annotations

import torch

from flexmix.domains.moments import Moments
from trainers.privacy.moments import Whitening, private_moments, usual_norm

L, D = 2, 6


def public() -> list[Moments]:
    dice = torch.Generator().manual_seed(0)
    found = []
    for _ in range(L):
        part = Moments.empty(D)
        part.update(torch.randn(500, D, generator=dice) @ torch.randn(D, D, generator=dice) + 1)
        found.append(part)
    return found


def units(count: int = 200) -> list[torch.Tensor]:
    dice = torch.Generator().manual_seed(1)
    return [1.5 + torch.randn(L, D, generator=dice) for _ in range(count)]


def test_without_bound_and_noise_it_is_the_mean_and_the_covariance_of_public_text() -> None:
    own, zero = units(), torch.zeros(L, D)
    found = private_moments(own, Whitening(public()), clip=1e6, expected=len(own), noise_LD=zero)
    for n, (part, reference) in enumerate(zip(found, public(), strict=True)):
        torch.testing.assert_close(part.mean, torch.stack(own)[:, n].double().mean(0))
        torch.testing.assert_close(part.covariance, reference.covariance)


def test_one_unit_moves_the_sum_by_the_bound_at_most() -> None:
    """In the coordinates of public text, which the factor takes back."""
    own, zero, clip = units(), torch.zeros(L, D), 1.0
    wild = [*own, torch.full((L, D), 1e6)]
    sums = [private_moments(some, Whitening(public()), clip, 1.0, zero) for some in (own, wild)]
    moved = torch.stack([b.mean - a.mean for a, b in zip(*sums, strict=True)])
    one = private_moments([torch.full((L, D), 1e6)], Whitening(public()), clip, 1.0, zero)
    expected = torch.stack([part.mean - reference.mean for part, reference in zip(one, public(), strict=True)])
    torch.testing.assert_close(moved, expected)
    assert usual_norm([*own], Whitening(public())) > 0
    assert abs(usual_norm([part.mean.expand(L, D) for part in public()[:1]], Whitening(public()[:1] * L))) < 1e-6


def test_noise_is_added_once_whatever_was_drawn() -> None:
    noise = torch.randn(L, D, generator=torch.Generator().manual_seed(2))
    none = private_moments([], Whitening(public()), 1.0, 10.0, noise)
    again = private_moments([], Whitening(public()), 1.0, 20.0, 2 * noise)
    for a, b in zip(none, again, strict=True):
        torch.testing.assert_close(a.mean, b.mean)
