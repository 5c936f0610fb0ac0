"""Covariances in a quarter of the bytes: what comes back, and what is refused."""

from __future__ import annotations

import numpy as np
import pytest

from merge.tensor_io.covariance import packed, unpacked


def spread(width: int) -> np.ndarray:
    """A covariance whose variances span eight orders of magnitude, with one dimension that never changes."""
    draw = np.random.default_rng(0)
    x_ND = draw.standard_normal((4 * width, width)) @ draw.standard_normal((width, width))
    x_ND *= np.logspace(-4, 4, width)
    x_ND[:, 0] = 0.0
    return np.cov(x_ND, rowvar=False, bias=True).reshape(width, width)


@pytest.mark.parametrize("width", [1, 2, 33])
def test_every_entry_comes_back_to_2_in_100_000_of_its_scale(width: int) -> None:
    covariance_DD = spread(width)
    deviation_D, correlation = packed(covariance_DD)
    assert deviation_D.nbytes + correlation.nbytes == 4 * width + width * (width - 1)
    back_DD = unpacked(deviation_D, correlation)
    scale_DD = np.sqrt(np.outer(np.diagonal(covariance_DD), np.diagonal(covariance_DD)))
    assert (np.abs(back_DD - covariance_DD) <= scale_DD * 2e-5).all()
    np.testing.assert_array_equal(back_DD, back_DD.T)
    np.testing.assert_allclose(np.diagonal(back_DD), np.diagonal(covariance_DD), rtol=1e-6)


def test_what_is_no_covariance_is_refused() -> None:
    one_D, correlation = np.ones(3, np.float32), np.zeros(3, np.int16)
    for deviation_D, values in (
        (one_D, correlation[:2]),
        (-one_D, correlation),
        (one_D * np.inf, correlation),
        (one_D * np.nan, correlation),
    ):
        with pytest.raises(ValueError, match=r"correlations of|deviations"):
            unpacked(deviation_D, values)
