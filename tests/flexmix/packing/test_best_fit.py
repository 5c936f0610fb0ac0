from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st

from flexmix.packing.best_fit import BestFit, best_fit
from flexmix.packing.windows import NO_LABEL, Windows
from flexmix.tokens.shard import prepare_shard
from tests.flexmix.packing.test_loaders import E, shard_of
from tests.flexmix.text import TEXTS, write_jsonl

documents_and_length = st.tuples(
    st.lists(st.lists(st.integers(1, 9), min_size=1, max_size=20), min_size=1, max_size=15), st.integers(1, 12)
)


def pieces(windows: BestFit) -> list[list[tuple[list[int], list[int], bool]]]:
    """Of every window, its pieces as (inputs, labels, is padding), told apart by positions alone."""
    batch = windows.read(np.arange(len(windows)))
    assert all(part.dtype == torch.int64 and part.shape == (len(windows), windows.length) for part in batch.values())
    found = []
    for x_T, y_T, place_T in zip(*(batch[name] for name in ("input_ids", "labels", "position_ids")), strict=True):
        starts = (place_T == 0).nonzero().flatten().tolist()
        row = []
        for start, end in zip(starts, [*starts[1:], windows.length], strict=True):
            assert place_T[start:end].tolist() == list(range(end - start))
            labels = y_T[start:end].tolist()
            assert len({label == NO_LABEL for label in labels}) == 1, "padding and text in one piece"
            row.append((x_T[start:end].tolist(), labels, labels[0] == NO_LABEL))
        found.append(row)
    return found


@given(documents_and_length)
def test_every_token_predicts_once_and_no_short_document_is_cut(case: tuple[list[list[int]], int]) -> None:
    documents, length = case
    windows = BestFit(shard_of(documents), length)
    text = [piece for row in pieces(windows) for piece in row if not piece[2]]
    expected = []
    for ids in documents:
        inputs, labels = [E, *ids], [*ids, E]
        expected += [(inputs[at : at + length], labels[at : at + length]) for at in range(0, len(inputs), length)]
    assert sorted((inputs, labels) for inputs, labels, _ in text) == sorted(expected)


@given(documents_and_length)
def test_padding_is_what_it_says_and_comes_last(case: tuple[list[list[int]], int]) -> None:
    documents, length = case
    windows = BestFit(shard_of(documents), length)
    rows = pieces(windows)
    for row in rows:
        assert not any(is_padding for *_, is_padding in row[:-1]) and not row[0][2]
        assert all(set(inputs) == {E} for inputs, _, is_padding in row if is_padding)
    padded = sum(len(inputs) for row in rows for inputs, _, is_padding in row if is_padding)
    assert (
        windows.padding * len(windows) * length == padded or abs(windows.padding - padded / (len(rows) * length)) < 1e-9
    )


@given(st.lists(st.integers(1, 30), min_size=1, max_size=60), st.integers(30, 40))
def test_pieces_go_into_the_fullest_window_with_room(sizes: list[int], capacity: int) -> None:
    """Against the definition, one piece at a time."""
    found = best_fit(np.array(sizes), capacity)
    rooms: list[int] = []
    for piece in sorted(range(len(sizes)), key=lambda n: -sizes[n]):
        fits = [room for room in rooms if room >= sizes[piece]]
        window = int(found[piece])
        if fits:
            assert rooms[window] == min(fits)
        else:
            assert window == len(rooms)
            rooms.append(capacity)
        rooms[window] -= sizes[piece]
    assert min(rooms) >= 0


def test_a_shard_from_disk_gives_the_same_windows_again(tiny_anchor: Path, tmp_path: Path) -> None:
    source = write_jsonl(tmp_path / "a.jsonl", [text for n in range(1, 9) for text in (TEXTS[n % 4] * n, "short")])
    shard = prepare_shard(source, tiny_anchor, tmp_path / "cache")
    first, second = BestFit(shard, 32), BestFit(prepare_shard(source, tiny_anchor, tmp_path / "cache"), 32)
    everything = np.arange(len(first))
    for name, part in first.read(everything).items():
        assert torch.equal(part, second.read(everything)[name])
    assert int((first.read(everything)["labels"] != NO_LABEL).sum()) == shard.tokens
    assert len(Windows(shard, 32, "here")) <= len(first) < 1.1 * shard.tokens / 32 + 1
