"""Weights in 4 and 8 bits: how far from the truth, and there and back again."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from flexo.errors import InputError, ModelFolderError
from merge.formats.architecture import Architecture
from merge.formats.quantization import Scheme, scheme_for, scheme_of

FINITE = st.floats(-(2.0**100), 2.0**100, width=32)
ARCHITECTURE = Architecture(96, 160, 768, 1, 4, 4, False, 1e-5, 1e4)


@settings(deadline=None, max_examples=60)
@given(st.sampled_from((4, 8)), st.sampled_from(("F32", "BF16")), arrays(np.float32, (3, 16), elements=FINITE))
def test_every_weight_is_within_half_a_step(bits: int, dtype: str, values: np.ndarray) -> None:
    scheme = Scheme(bits, 8)
    whole, scale = scheme.quantize(values, dtype)
    assert whole.dtype == np.int8 and scale.shape == (3, 2) and (scale > 0).all()
    groups, back = values.reshape(3, 2, 8), scheme.dequantize(whole, scale).reshape(3, 2, 8)
    # half a step; a scale rounded to bfloat16 is off by 2^-9 at most, which cuts as much off the largest
    largest = np.abs(groups).max(-1)[..., None]
    slack = largest * (1e-6 if dtype == "F32" else 2**-8) + 1e-37  # below which there are no whole steps
    assert (np.abs(groups - back) <= scale[..., None] * 0.5 * (largest > 1e-37) + slack).all()
    one, _ = scheme.quantize(values[1:2], dtype)  # a row's numbers do not depend on its company
    assert (one == whole[1:2]).all()


@given(st.sampled_from((4, 8)), st.data())
def test_packing_is_undone_by_unpacking(bits: int, data: st.DataObject) -> None:
    low, high = -(2 ** (bits - 1)), 2 ** (bits - 1) - 1
    whole = data.draw(arrays(np.int8, (2, 16), elements=st.integers(low, high)))
    packed = Scheme(bits, 8).pack(whole)
    assert len(packed) == 2 * 16 * bits // 8
    assert (Scheme(bits, 8).unpack(packed, (2, 16)) == whole).all()


def test_the_first_value_lies_in_the_lowest_bits() -> None:
    assert Scheme(4, 8).pack(np.array([[-8, 7, 0, 0, 0, 0, 0, 1]], np.int8)) == bytes([0xF0, 0x88, 0x88, 0x98])
    assert Scheme(8, 8).pack(np.array([[-128, 127, 0, 1]], np.int8)) == bytes([0, 255, 128, 129])


def test_group_sizes_must_divide_both_widths() -> None:
    assert scheme_for(ARCHITECTURE, 4, None) == Scheme(4, 32)
    for size in (128, 0, -8, 12, 20):
        with pytest.raises(InputError, match=r"Give one of 8, 16, 32\."):
            scheme_for(ARCHITECTURE, 4, size)
    assert scheme_of({}, ARCHITECTURE, "here") is None
    for said in ("4", {"bits": 3, "group_size": 32}, {"bits": 4, "group_size": "32"}, {"bits": 4, "group_size": 64}):
        with pytest.raises(ModelFolderError, match="here: quantised"):
            scheme_of({"quantised": said}, ARCHITECTURE, "here")
