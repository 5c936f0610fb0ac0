"""A weight as the public one plus a difference of low rank, in whole numbers, so that all machines form the same bits.

    W = W_0 + s L R        L [out, r] and R [r, in] of 16 bits, s a power of two

Every product, and every sum of up to 2^23 of them, is a whole number below 2^53, which float64 holds exactly: in
whatever order they are added, nothing is rounded. What follows is rounded value by value, to the nearest.
"""

from __future__ import annotations

import numpy as np

from merge.tensor_io.float_formats import Bytes, Values, rounded, to_float32

LARGEST = (1 << 15) - 1
ROWS = 256  # formed at once


def as_factors(left: Values, right: Values) -> tuple[Values, Values, float]:
    """L, R and s for the product of `left` [out, r] and `right` [r, in], each value to 16 bits of the largest."""
    whole, exponents = [], []
    for part in (left, right):
        largest = float(np.abs(part).max(initial=0.0))
        exponent = int(np.ceil(np.log2(largest / LARGEST))) if largest > 0 else 0
        whole.append(np.rint(np.ldexp(part.astype(np.float64), -exponent)).astype(np.int16))
        exponents.append(exponent)
    return whole[0], whole[1], float(np.ldexp(1.0, sum(exponents)))


def is_scale(value: float) -> bool:
    """Whether a number is a power of two that a normal float32 can hold."""
    return 2.0**-126 <= value < 2.0**128 and float(np.frexp(value)[0]) == 0.5


def formed(public: Bytes, dtype: str, left: Values, right: Values, scale: float) -> bytearray:
    """The values of W, in the dtype that those of W_0 have; `public` may be its first rows, as many as `left` has."""
    public_FD = to_float32(public, dtype).reshape(len(left), right.shape[1])
    right_rD, data = right.astype(np.float64), bytearray()
    for begin in range(0, len(left), ROWS):
        rows = slice(begin, begin + ROWS)
        sum_FD = public_FD[rows].astype(np.float64) + scale * (left[rows].astype(np.float64) @ right_rD)
        with np.errstate(over="ignore"):  # becomes infinite, which whoever asks looks for
            data += rounded(sum_FD.astype(np.float32), dtype)
    return data
