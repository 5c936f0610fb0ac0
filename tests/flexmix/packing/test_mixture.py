from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from flexmix.packing.loaders import Seat, Stream, TrainLoader
from flexmix.packing.mixture import Mixture, WeightedWindows, mix, mixture_shares
from flexo.errors import InputError
from tests.flexmix.packing.test_loaders import rows, windows_of

weights = st.lists(st.floats(0.01, 100), min_size=1, max_size=5)


def mixture_of(parts: list[float], seed: int = 0) -> Mixture:
    """Sources of 3, 4, 5... windows; the tokens of source n are from 1000 n on."""
    return Mixture([Stream(windows_of(3 + n, first=1000 * n + 1), seed) for n in range(len(parts))], parts)


def sources_of(mixture: Mixture, places: list[int]) -> list[int]:
    return (mixture.at(np.array(places))["labels"][:, 0] // 1000).tolist()


@given(weights, st.integers(0, 10**7), st.integers(1, 60))
def test_shares_hold_over_any_stretch(given_weights: list[float], first: int, count: int) -> None:
    shares = mixture_shares(given_weights)
    mixture = mixture_of(shares)
    found = Counter(sources_of(mixture, list(range(first, first + count))))
    for source, share in enumerate(shares):
        assert abs(found[source] - share * count) <= len(shares)
    assert sum(mixture.counts(first)) == first


@given(weights, st.lists(st.integers(0, 200), min_size=1, max_size=30))
def test_a_place_holds_the_same_window_whatever_else_is_read(given_weights: list[float], places: list[int]) -> None:
    mixture = mixture_of(mixture_shares(given_weights))
    together = mixture.at(np.array(places))
    alone = [mixture.at(np.array([place])) for place in places]
    for name, part in together.items():
        assert torch.equal(part, torch.cat([row[name] for row in alone]))


@given(st.lists(st.floats(0.05, 20), min_size=2, max_size=4))
def test_every_source_goes_through_its_own_epochs(given_weights: list[float]) -> None:
    mixture = mixture_of(mixture_shares(given_weights))
    batch = mixture.at(np.arange(300))
    for source, stream in enumerate(mixture.streams):
        mine = batch["labels"][:, 0] // 1000 == source
        first = 1000 * source + 1
        found = rows({name: part[mine] for name, part in batch.items()}, first=first)
        assert found == rows(stream.read(0, len(found)), first=first)


def test_one_source_is_its_stream() -> None:
    windows = windows_of(7)
    for places in (np.arange(20), np.array([13, 2])):
        found, expected = mix([WeightedWindows(windows)], 3.0, 5).at(places), Stream(windows, 5).at(places)
        assert all(torch.equal(found[name], expected[name]) for name in expected)


def test_temperature_evens_sizes_out() -> None:
    assert mixture_shares([9e6, 1e6]) == pytest.approx([0.9, 0.1])
    assert mixture_shares([9e6, 1e6], temperature=2.0) == pytest.approx([0.75, 0.25])
    assert mixture_shares([9e6, 1e6], temperature=1e9) == pytest.approx([0.5, 0.5])
    assert mixture_shares([9e6, 1e6], temperature=0.5) == pytest.approx([81 / 82, 1 / 82])
    assert mixture_shares([1, 1, 1], [2, 1, 1]) == pytest.approx([0.5, 0.25, 0.25])
    assert mixture_shares([1e300, 1.0], temperature=0.1) == pytest.approx([1.0, 0.0])


@pytest.mark.parametrize(
    ("given_weights", "temperature", "message"),
    [
        ([1.0, None], 1.0, r"weights \[1\.0, None\]\. Give a weight to every source, or to none"),
        ([1.0, 0.0], 1.0, "must be positive"),
        ([1.0, float("nan")], 1.0, "must be positive"),
        (None, 0.0, "temperature 0.0 must be positive"),
        (None, -1.0, "temperature -1.0 must be positive"),
    ],
)
def test_unusable_weights_are_refused(
    given_weights: list[float | None] | None, temperature: float, message: str
) -> None:
    with pytest.raises(InputError, match=message):
        mixture_shares([1, 2], given_weights, temperature)


@given(weights, st.integers(0, 12), st.sampled_from([1, 2, 4]), st.sampled_from([0.0, 0.25, 0.4]))
def test_a_mixture_resumes_exactly_on_any_devices(
    given_weights: list[float], stop: int, devices: int, share: float
) -> None:
    shares = mixture_shares(given_weights)
    public = Stream(windows_of(5, first=9001), 0)
    whole = list(TrainLoader(mixture_of(shares), public, share, 4, 12))
    for batch in whole:
        first = batch["labels"][:, 0]
        assert batch["source"].tolist() == torch.where(first > 9000, -1, first // 1000).tolist()
    for rank in range(devices):
        loader = TrainLoader(mixture_of(shares), public, share, 4, 12, Seat(rank, devices))
        loader.load_state_dict({"step": stop})
        rest = list(loader)
        assert len(rest) == 12 - stop
        for part, batch in zip(rest, whole[stop:], strict=True):
            assert all(torch.equal(part[name], batch[name][rank::devices]) for name in batch)
