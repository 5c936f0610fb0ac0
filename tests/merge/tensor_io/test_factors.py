"""Factors of whole numbers: how near they come, and that every order of adding gives the same bits."""

from __future__ import annotations

import numpy as np
import pytest

from merge.tensor_io.factors import as_factors, formed, is_scale
from merge.tensor_io.float_formats import rounded, to_float32

DICE = np.random.default_rng(0)


@pytest.mark.parametrize("size", [1e-30, 1.0, 1e30])
def test_the_product_is_that_of_the_factors(size: float) -> None:
    left, right = DICE.normal(size=(40, 5)) * size, DICE.normal(size=(5, 30))
    whole_left, whole_right, scale = as_factors(left, right)
    assert is_scale(scale) and whole_left.dtype == whole_right.dtype == np.int16
    product = scale * (whole_left.astype(float) @ whole_right)
    assert np.abs(product - left @ right).max() < 2e-4 * np.abs(left @ right).max()


def test_the_largest_values_fit_and_nothing_stays_nothing() -> None:
    left, right, scale = as_factors(np.array([[1.0], [-1.0], [2 - 2**-20]]), np.zeros((1, 2)))
    assert 16384 <= np.abs(left).max() <= 32767 and not right.any() and is_scale(scale)


@pytest.mark.parametrize("dtype", ["F32", "BF16"])
def test_bits_do_not_depend_on_the_order_of_adding(dtype: str) -> None:
    """The worst there is: factors as large as they can be, of both signs, of a rank of thousands."""
    rank, shape = 3000, (300, 7)
    left = DICE.integers(-32768, 32768, (shape[0], rank), dtype=np.int16)
    right = DICE.integers(-32768, 32768, (rank, shape[1]), dtype=np.int16)
    public = rounded(DICE.normal(size=shape).astype(np.float32), dtype)
    expected = formed(public, dtype, left, right, 2.0**-40)
    order = DICE.permutation(rank)
    assert formed(public, dtype, left[:, order], right[order], 2.0**-40) == expected
    product = (left.astype(np.int64) @ right.astype(np.int64)).astype(np.float64)
    added = to_float32(public, dtype).reshape(shape).astype(np.float64) + 2.0**-40 * product
    assert rounded(added.astype(np.float32), dtype) == bytes(expected)
    few = formed(public[: len(public) // 3], dtype, left[:100], right, 2.0**-40)
    assert few == expected[: len(few)]


@pytest.mark.parametrize("value", [0.0, -1.0, 3.0, float("nan"), float("inf"), 2.0**-130])
def test_what_is_no_scale(value: float) -> None:
    assert not is_scale(value)
