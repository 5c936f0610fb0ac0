"""The arithmetic of a merge, in numpy because PyTorch takes seconds to import: finite or not, and other dtypes.

Rounding is to the nearest, ties to even, as in PyTorch; the tests compare the two value by value.
"""

from __future__ import annotations

from typing import Any

import numpy as np

Bytes = bytes | bytearray | memoryview
Values = np.ndarray[Any, np.dtype[Any]]

# dtype -> unsigned and signed integers of its size, and the pattern of infinity, which with the sign ends each sign's
# finite patterns
PATTERNS: dict[str, tuple[Any, Any, int]] = {
    "F64": (np.uint64, np.int64, 0x7FF << 52),
    "F32": (np.uint32, np.int32, 0xFF << 23),
    "F16": (np.uint16, np.int16, 0x1F << 10),
    "BF16": (np.uint16, np.int16, 0xFF << 7),
}
NUMPY: dict[str, Any] = {"F64": np.float64, "F32": np.float32, "F16": np.float16}


def all_finite(data: Bytes, dtype: str) -> bool:
    """Whether no value is NaN or infinite; whole numbers never are. `data` holds whole values."""
    if dtype not in PATTERNS or not len(data):
        return True
    unsigned, signed, infinity = PATTERNS[dtype]
    lowest = np.iinfo(signed).min
    return bool(
        np.frombuffer(data, signed).max() < infinity  # the positive ones; as signed numbers the others are below zero
        and np.frombuffer(data, unsigned).max() < infinity - lowest
    )


def count_subnormal(data: Bytes, dtype: str) -> int:
    """How many values are nearer to zero than a float32 can hold in full, and not zero.

    None for F16, which is computed in float32. Fast where there are none, which is nearly always.
    """
    if dtype not in ("F32", "BF16") or not len(data):
        return 0
    unsigned, signed, infinity = PATTERNS[dtype]
    positive, negative = np.frombuffer(data, unsigned), np.frombuffer(data, signed)  # where each kind is the smallest
    smallest, lowest = infinity // 0xFF, np.iinfo(signed).min  # the pattern of the smallest normal number, and of -0
    if positive.min() >= smallest and negative.min() >= lowest + smallest:
        return 0
    small = np.count_nonzero(positive < smallest) + np.count_nonzero(negative < lowest + smallest)
    return int(small - np.count_nonzero(positive == 0) - np.count_nonzero(negative == lowest))


def to_float32(data: Bytes, dtype: str) -> Values:
    """The values as float32 [n]; exact unless they are float64."""
    if dtype == "BF16":
        return (np.frombuffer(data, np.uint16).astype(np.uint32) << 16).view(np.float32)
    with np.errstate(over="ignore"):  # becomes infinite, which the caller looks for
        return np.frombuffer(data, NUMPY[dtype]).astype(np.float32)


def rounded(values: Values, dtype: str) -> bytes:
    """float32 values as the bytes of another floating dtype. Finite ones only; what is too large becomes infinite."""
    if dtype == "BF16":
        bits = np.ascontiguousarray(values).view(np.uint32)
        return ((bits + (0x7FFF + ((bits >> 16) & 1))) >> 16).astype(np.uint16).tobytes()
    with np.errstate(over="ignore"):
        return values.astype(NUMPY[dtype]).tobytes()
