from __future__ import annotations

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from flexmix.domains.moments import Moments


@settings(max_examples=30)
@given(st.lists(st.integers(0, 20), min_size=1, max_size=6), st.integers(1, 5), st.floats(-100, 100))
def test_moments_are_those_of_numpy_however_vectors_are_batched(sizes: list[int], width: int, offset: float) -> None:
    x = torch.randn(sum(sizes) + 2, width, generator=torch.Generator().manual_seed(sum(sizes))) + offset
    moments = Moments.empty(width)
    for batch in x.split([*sizes, 2]):
        moments.update(batch)
    reference = x.double().numpy()
    assert moments.count == len(x)
    np.testing.assert_allclose(moments.mean, reference.mean(0), rtol=1e-6, atol=1e-6)
    np.testing.assert_allclose(moments.second, reference.T @ reference / len(x), rtol=1e-6, atol=1e-6)
    covariance = np.cov(reference, rowvar=False, bias=True).reshape(width, width)
    np.testing.assert_allclose(moments.covariance, covariance, atol=1e-5)


def test_a_mean_far_from_zero_takes_no_digits_of_the_spread() -> None:
    x = torch.randn(4000, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64) * 1e-2 + 1000
    x = x.float()  # to whose values, 6e-5 apart, the reference is exact
    moments = Moments.empty(3)
    for batch in x.split(500):
        moments.update(batch)
    np.testing.assert_allclose(moments.covariance, np.cov(x.double(), rowvar=False, bias=True), rtol=1e-5, atol=1e-9)


def test_no_vectors_change_nothing() -> None:
    moments = Moments.empty(2)
    moments.update(torch.ones(0, 2))
    moments.update(torch.ones(3, 2))
    moments.update(torch.ones(0, 2))
    assert moments.count == 3 and torch.equal(moments.mean, torch.ones(2).double())


def test_sums_of_low_precision_vectors_with_gradients_are_float64() -> None:
    x = torch.randn(1000, 4, generator=torch.Generator().manual_seed(0)).bfloat16().requires_grad_()
    moments = Moments.empty(4)
    moments.update(x)
    assert moments.mean.dtype == moments.second.dtype == moments.covariance.dtype == torch.float64
    assert not moments.mean.requires_grad
    np.testing.assert_allclose(moments.mean, x.detach().double().mean(0), rtol=1e-6, atol=1e-7)


def test_stored_moments_come_back() -> None:
    moments = Moments.empty(3)
    moments.update(torch.randn(50, 3, generator=torch.Generator().manual_seed(0)))
    back = Moments.of(moments.mean.float(), moments.second.float())
    for name in ("mean", "second", "covariance"):
        torch.testing.assert_close(getattr(back, name), getattr(moments, name), rtol=1e-5, atol=1e-6)
