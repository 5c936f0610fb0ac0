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
    np.testing.assert_allclose(moments.mean, reference.mean(0), rtol=1e-12, atol=1e-9)
    np.testing.assert_allclose(moments.second, reference.T @ reference / len(x), rtol=1e-12)
    covariance = np.cov(reference, rowvar=False, bias=True).reshape(width, width)
    np.testing.assert_allclose(moments.covariance, covariance, atol=1e-9)


def test_low_precision_vectors_with_gradients_are_summed_in_float64() -> None:
    x = torch.randn(1000, 4, generator=torch.Generator().manual_seed(0)).bfloat16().requires_grad_()
    moments = Moments.empty(4)
    moments.update(x)
    assert moments.mean.dtype == moments.second.dtype == moments.covariance.dtype == torch.float64
    assert not moments.mean.requires_grad
    np.testing.assert_allclose(moments.mean, x.detach().double().mean(0), rtol=1e-12)


def test_stored_moments_come_back() -> None:
    moments = Moments.empty(3)
    moments.update(torch.randn(50, 3, generator=torch.Generator().manual_seed(0)))
    back = Moments.of(moments.mean.float(), moments.second.float())
    for name in ("mean", "second", "covariance"):
        torch.testing.assert_close(getattr(back, name), getattr(moments, name), rtol=1e-5, atol=1e-6)
