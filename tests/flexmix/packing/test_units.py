"""Windows of one unit each: nothing is lost, nothing is mixed."""

from __future__ import annotations

import numpy as np
import pytest

from flexmix.packing.units import UnitWindows
from flexmix.packing.windows import NO_LABEL
from tests.flexmix.packing.test_loaders import E, shard_of

DOCUMENTS = [range(1, 9), range(20, 23), range(30, 34), [], range(40, 55)]
UNITS = np.array([7, 3, 7, 5, 3])


def test_a_drawing() -> None:
    shard = shard_of(DOCUMENTS)
    windows = UnitWindows(shard, 8, UNITS)
    assert windows.units == 3 and windows.tokens_U.tolist() == [20, 1, 14] and windows.windows_U.tolist() == [3, 1, 2]
    batch = windows.read(windows.of_unit(2))
    first, third = shard.ids[:9].tolist(), shard.ids[13:18].tolist()
    flat = batch["input_ids"].flatten().tolist()
    assert flat == [*first, *third, E, E]
    assert batch["labels"].flatten().tolist() == [*first[1:], *third, E, NO_LABEL, NO_LABEL]
    assert batch["position_ids"].tolist() == [[0, 1, 2, 3, 4, 5, 6, 7], [0, 0, 1, 2, 3, 4, 0, 1]]
    assert [windows.documents(int(n)).tolist() for n in windows.of_unit(2)] == [[0], [0, 2]]
    assert windows.documents(int(windows.of_unit(1)[0])).tolist() == [3]


@pytest.mark.parametrize("units", [None, UNITS])
@pytest.mark.parametrize("length", [1, 3, 8, 64])
def test_every_token_is_an_input_once_and_in_a_window_of_its_unit(length: int, units: np.ndarray | None) -> None:
    shard = shard_of(DOCUMENTS)
    windows = UnitWindows(shard, length, units)
    of_document = np.arange(len(DOCUMENTS)) if units is None else np.unique(units, return_inverse=True)[1]
    for unit in range(windows.units):
        expected = [
            token
            for document in np.flatnonzero(of_document == unit)
            for token in shard.ids[shard.starts[document] : shard.starts[document + 1]].tolist()
        ]
        batch = windows.read(windows.of_unit(unit))
        inputs, labels = batch["input_ids"].flatten().tolist(), batch["labels"].flatten().tolist()
        assert inputs[: len(expected)] == expected and set(inputs[len(expected) :]) <= {E}
        assert labels[: len(expected)] == [*expected[1:], E]
        assert set(labels[len(expected) :]) <= {NO_LABEL}
    assert len(windows) == sum(len(windows.of_unit(unit)) for unit in range(windows.units))
