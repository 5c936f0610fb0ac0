"""Poisson sampling of units: each on its own, the same again, whole, and in parts that cut none."""

from __future__ import annotations

import numpy as np
import pytest
import torch

pytest.importorskip("cryptography", reason="the extra privacy is not installed")

from flexmix.packing.loaders import Stream
from flexmix.packing.units import UnitWindows
from tests.flexmix.packing.test_loaders import shard_of, windows_of
from trainers.privacy.randomness import Secret
from trainers.privacy.sampling import PUBLIC, PoissonUnits, parts

T = 4


def sampled(rate: float = 0.3, at_most: int = 2, public: int = 0) -> PoissonUnits:
    """Forty units of one to four windows, whose tokens name the unit."""
    shard = shard_of([[100 + unit] * (T * (unit % 4) + 1) for unit in range(40)])
    stream = Stream(windows_of(50), 0) if public else None
    return PoissonUnits(UnitWindows(shard, T), rate, at_most, Secret(bytes(range(32))), stream, public)


def test_units_are_drawn_at_the_rate_each_on_its_own() -> None:
    units = sampled()
    drawn = np.array([np.isin(np.arange(40), units.drawn(step)) for step in range(2000)])
    error = 5 * (0.3 * 0.7 / 2000) ** 0.5
    assert abs(drawn.mean(0) - 0.3).max() < error
    together = (drawn[:, :, None] & drawn[:, None, :]).mean(0)[np.triu_indices(40, 1)]
    assert abs(together - 0.09).max() < 5 * (0.09 * 0.91 / 2000) ** 0.5
    assert {len(units.drawn(step)) for step in range(50)} != {12}  # not a batch of a fixed size


def test_a_step_is_the_same_again_and_reads_so_many_windows_of_a_unit() -> None:
    units = sampled()
    for step in range(5):
        batch, again = units.batch(step), units.batch(step)
        assert all(torch.equal(batch[name], again[name]) for name in batch)
        for number, unit in enumerate(units.drawn(step)):
            rows = batch["unit"] == number
            assert rows.sum() == min(2, units.windows.windows_U[unit])
            assert set(batch["input_ids"][rows].unique().tolist()) <= {0, 100 + int(unit)}
    assert units.drawn(0).tolist() != units.drawn(1).tolist()


def test_a_step_without_units_is_one_of_public_text() -> None:
    batch = sampled(rate=0.0, public=3).batch(0)
    assert batch["input_ids"].shape == (3, T) and set(batch["unit"].tolist()) == {PUBLIC} and not batch["own"].any()


@pytest.mark.parametrize("devices", [1, 2])
def test_parts_cut_no_unit_and_lose_no_window(devices: int) -> None:
    batch = sampled(at_most=4, public=5).batch(0)
    found = [part for rank in range(devices) for part in parts(batch, 6, rank, devices)]
    assert sum(len(part["unit"]) for part in found) == len(batch["unit"])
    for part in found:
        assert len(part["unit"]) <= 6
        for unit in set(part["unit"].tolist()) - {PUBLIC}:
            assert (part["unit"] == unit).sum() == (batch["unit"] == unit).sum()
