from __future__ import annotations

from collections.abc import Iterable
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from flexmix.packing.attention import varlen
from flexmix.packing.best_fit import BestFit
from flexmix.packing.loaders import EvalLoader, Seat, Stream, TrainLoader
from flexmix.packing.windows import Batch, Packed, Windows
from flexmix.tokens.shard import TokenShard, prepare_shard
from flexo.errors import InputError
from tests.flexmix.text import TEXTS, write_jsonl

E = 0  # the end-of-text token of made-up shards


def shard_of(documents: Iterable[Iterable[int]]) -> TokenShard:
    """A shard in memory; each document gets its end-of-text token."""
    stream = [[E, *ids] for ids in documents]
    shard = TokenShard(Path("nowhere"), len(stream), sum(map(len, stream)), 1, 0, E, "", "uint16")
    shard.__dict__["starts"] = np.cumsum([0, *map(len, stream)])
    shard.__dict__["ids"] = np.fromiter(chain.from_iterable(stream), dtype=np.uint16)
    return shard


def windows_of(count: int, length: int = 4, first: int = 1) -> Windows:
    """`count` windows of one long document whose tokens are all different, so that a row names its window."""
    return Windows(shard_of([range(first, first + count * length)]), length, "numbers")


def same(left: Batch, right: Batch) -> bool:
    return left.keys() == right.keys() and all(torch.equal(left[name], right[name]) for name in left)


def rows(batch: Batch, length: int = 4, first: int = 1) -> list[int]:
    """Which window each row is, for `windows_of`."""
    return ((batch["labels"][:, 0] - first) // length).tolist()


some_documents = st.lists(st.lists(st.integers(1, 9), min_size=1, max_size=12), min_size=1, max_size=12)


# --- windows


@given(some_documents, st.integers(1, 9))
def test_every_token_is_predicted_once_and_from_the_one_before(documents: list[list[int]], length: int) -> None:
    shard = shard_of(documents)
    stream = shard.ids.tolist()
    if len(stream) <= length:
        with pytest.raises(InputError, match=rf"^here: {len(stream)} tokens in {len(documents)} documents, one window"):
            Windows(shard, length, "here")
        return
    windows = Windows(shard, length, "here")
    batch = windows.read(np.arange(len(windows)))
    assert all(rows.dtype == torch.int64 and rows.shape == (len(windows), length) for rows in batch.values())
    inputs, labels = batch["input_ids"].flatten().tolist(), batch["labels"].flatten().tolist()
    assert labels == stream[1 : len(labels) + 1] and inputs == stream[: len(labels)]
    assert 0 <= len(stream) - 1 - len(labels) < length  # what is left over at the end fills no window


@given(some_documents, st.integers(1, 9))
def test_positions_restart_with_each_document_and_each_window(documents: list[list[int]], length: int) -> None:
    shard = shard_of([*documents, [1] * length])
    batch = Windows(shard, length, "here").read(np.arange(1))
    expected: list[int] = []
    for token in shard.ids[:length]:
        expected.append(0 if token == E or not expected else expected[-1] + 1)
    assert batch["position_ids"][0].tolist() == expected


def test_windows_in_the_order_asked_for_none_and_repeated() -> None:
    windows = windows_of(5)
    assert rows(windows.read(np.array([3, 0, 3]))) == [3, 0, 3]
    none = windows.read(np.array([], dtype=np.int64))
    assert {name: tuple(part.shape) for name, part in none.items()} == dict.fromkeys(none, (0, 4))


def packed_windows(packing: str, anchor: Path, folder: Path, length: int = 48) -> Packed:
    """Windows over real text in which documents start in the middle."""
    source = write_jsonl(folder / "a.jsonl", ["a", "b", *TEXTS, "a", *TEXTS, *TEXTS])
    shard = prepare_shard(source, anchor, folder / "cache")
    return BestFit(shard, length) if packing == "best_fit" else Windows(shard, length, "here")


@pytest.mark.parametrize("packing", ["concat", "best_fit"])
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_no_token_attends_to_another_document(tiny_anchor: Path, tmp_path: Path, attention: str, packing: str) -> None:
    """The logits of a packed window are those of its documents run alone."""
    from transformers import AutoModelForCausalLM

    windows = packed_windows(packing, tiny_anchor, tmp_path)
    length = windows.length
    batch = windows.read(np.arange(len(windows))[-3:])
    model = AutoModelForCausalLM.from_pretrained(tiny_anchor, attn_implementation=attention).eval()
    model.requires_grad_(False)
    packed = model(input_ids=batch["input_ids"], position_ids=batch["position_ids"], use_cache=False).logits
    mixed = model(input_ids=batch["input_ids"], use_cache=False).logits
    documents = 0
    for row in range(3):
        starts = (batch["position_ids"][row] == 0).nonzero().flatten().tolist()
        for start, end in zip(starts, [*starts[1:], length], strict=True):
            alone = model(input_ids=batch["input_ids"][row : row + 1, start:end]).logits[0]
            torch.testing.assert_close(packed[row, start:end], alone, rtol=0, atol=1e-5)
            if start:
                assert (mixed[row, start:end] - alone).abs().max() > 0.1  # it would show
                documents += 1
    assert documents >= (6 if packing == "concat" else 3)


@pytest.mark.parametrize("packing", ["concat", "best_fit"])
def test_flex_attention_gets_a_block_mask_of_documents(tiny_anchor: Path, tmp_path: Path, packing: str) -> None:
    from torch.nn.attention.flex_attention import BlockMask
    from transformers import AutoConfig
    from transformers.masking_utils import create_causal_mask

    windows = packed_windows(packing, tiny_anchor, tmp_path)
    batch = windows.read(np.arange(len(windows))[-3:])
    config = AutoConfig.from_pretrained(tiny_anchor, attn_implementation="flex_attention")
    x_BTD = torch.zeros(3, windows.length, config.hidden_size)
    with torch.compiler.set_stance("force_eager"):  # compiling the mask takes half a minute
        mask = create_causal_mask(config, x_BTD, None, None, position_ids=batch["position_ids"])
    assert isinstance(mask, BlockMask)
    place_T = torch.arange(windows.length)
    start_BT = place_T - batch["position_ids"]
    for row in range(3):
        seen_TT = mask.mask_mod(torch.tensor(row), torch.tensor(0), place_T[:, None], place_T)
        assert torch.equal(seen_TT, (start_BT[row][:, None] == start_BT[row]) & (place_T[:, None] >= place_T))


@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")  # which takes half a minute
def test_flex_attention_gives_what_sdpa_gives(tiny_anchor: Path, tmp_path: Path) -> None:
    from torch.nn.attention.flex_attention import flex_attention
    from transformers import AutoConfig
    from transformers.masking_utils import create_causal_mask

    windows = packed_windows("concat", tiny_anchor, tmp_path)
    positions_BT = windows.read(np.arange(3))["position_ids"]
    assert (positions_BT[:, 1:] == 0).any(), "no document starts in the middle"
    masks = {}
    for attention in ("sdpa", "flex_attention"):
        config = AutoConfig.from_pretrained(tiny_anchor, attn_implementation=attention)
        x_BTD = torch.zeros(3, windows.length, config.hidden_size)
        with torch.compiler.set_stance("force_eager"):
            masks[attention] = create_causal_mask(config, x_BTD, None, None, position_ids=positions_BT)
    generator = torch.Generator().manual_seed(0)
    q, k, v = torch.randn(3, 3, 4, windows.length, 16, generator=generator).unbind()  # heads of 16
    with torch.compiler.set_stance("force_eager"):
        flex = flex_attention(q, k, v, block_mask=masks["flex_attention"])
    sdpa = torch.nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=masks["sdpa"])
    mixed = torch.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True)
    torch.testing.assert_close(flex, sdpa, rtol=0, atol=1e-5)
    assert (mixed - sdpa).abs().max() > 0.1  # without the mask it would show


@given(some_documents, st.integers(2, 9))
def test_flash_attention_is_told_of_every_document(documents: list[list[int]], length: int) -> None:
    """As transformers itself would tell for the rows laid end to end."""
    from transformers.modeling_flash_attention_utils import prepare_fa_kwargs_from_position_ids

    windows = BestFit(shard_of(documents), length)
    positions_BT = windows.read(np.arange(len(windows)))["position_ids"]
    found = varlen(positions_BT)
    (starts_q, starts_k), (longest_q, longest_k) = prepare_fa_kwargs_from_position_ids(positions_BT.reshape(1, -1))
    assert torch.equal(found["cu_seq_lens_q"], starts_q) and torch.equal(found["cu_seq_lens_k"], starts_k)
    assert found["cu_seq_lens_q"].dtype == torch.int32
    assert (found["max_length_q"], found["max_length_k"]) == (int(longest_q), int(longest_k))


# --- streams


@given(st.integers(1, 30), st.integers(0, 5), st.integers(0, 3))
def test_every_epoch_is_a_permutation(count: int, seed: int, epoch: int) -> None:
    stream = Stream(windows_of(count), seed)
    order = rows(stream.read(epoch * count, count))
    assert sorted(order) == list(range(count))


@given(st.integers(1, 12), st.integers(0, 40), st.lists(st.integers(0, 7), max_size=8))
def test_an_order_does_not_depend_on_how_it_is_read(count: int, first: int, sizes: list[int]) -> None:
    """In pieces, from the back, by a new object: place p of the order is the same window."""
    windows = windows_of(count)
    whole = rows(Stream(windows, 3).read(first, sum(sizes)))
    places = np.cumsum([first, *sizes])
    pieces = list(zip(places[:-1].tolist(), sizes, strict=True))
    stream = Stream(windows, 3)
    backwards = [rows(stream.read(place, size)) for place, size in reversed(pieces)]
    assert list(chain.from_iterable(reversed(backwards))) == whole


def test_epochs_and_seeds_differ() -> None:
    windows = windows_of(20)
    orders = [rows(Stream(windows, seed).read(epoch * 20, 20)) for seed in (0, 1) for epoch in (0, 1, 2)]
    assert len({tuple(order) for order in orders}) == 6


# --- training batches


def loader_of(own: int, public: int, share: float, batch_size: int, steps: int) -> TrainLoader:
    """Own windows from token 1 on, public ones from token 1001 on."""
    public_stream = Stream(windows_of(public, first=1001), 0) if public else None
    return TrainLoader(Stream(windows_of(own), 0), public_stream, share, batch_size, steps)


def is_own(batch: Batch) -> list[bool]:
    return (batch["labels"][:, 0] < 1000).tolist()


loaders = st.tuples(
    st.integers(1, 9), st.integers(1, 9), st.floats(0, 0.99), st.integers(1, 6), st.integers(1, 25)
)  # fmt: skip


@given(loaders, st.data())
def test_public_rows_keep_their_share_over_any_stretch(options: Any, data: st.DataObject) -> None:
    _, _, share, batch_size, steps = options
    batches = list(loader_of(*options))
    assert len(batches) == steps
    assert all(len(batch["own"]) == batch_size for batch in batches)
    for batch in batches:
        assert batch["own"].tolist() == is_own(batch) == sorted(is_own(batch), reverse=True)  # own rows come first
    start = data.draw(st.integers(0, steps - 1))
    end = data.draw(st.integers(start + 1, steps))
    public = sum(is_own(batch).count(False) for batch in batches[start:end])
    assert abs(public - share * batch_size * (end - start)) < 1 + 1e-6


@pytest.mark.parametrize(("share", "batch_size"), [(0.25, 8), (0.25, 1), (0.5, 2), (0.1, 4), (0.75, 1)])
def test_a_share_holds_to_the_row_over_a_run(share: float, batch_size: int) -> None:
    batches = list(loader_of(7, 3, share, batch_size, 40))
    assert sum(is_own(batch).count(False) for batch in batches) == round(40 * batch_size * share)
    balance, own = (torch.cat([batch[name] for batch in batches]) for name in ("balance", "own"))
    assert float(balance[own].sum()) == pytest.approx(float(balance[~own].sum())) == pytest.approx(20 * batch_size)


@given(loaders)
def test_both_kinds_of_rows_come_in_the_order_of_their_streams(options: Any) -> None:
    own_count, public_count, _, _, _ = options
    batches = list(loader_of(*options))
    for first, count, kept in ((1, own_count, True), (1001, public_count, False)):
        found = [
            row
            for batch in batches
            for row, own in zip(rows(batch, first=first), is_own(batch), strict=True)
            if own == kept
        ]
        assert found == rows(Stream(windows_of(count, first=first), 0).read(0, len(found)), first=first)


@settings(max_examples=40, deadline=None)  # a busy machine is slow, not wrong
@given(loaders, st.data())
def test_a_loader_restored_in_the_middle_goes_on_with_the_same_batches(options: Any, data: st.DataObject) -> None:
    steps = options[4]
    whole = list(loader_of(*options))
    stop = data.draw(st.integers(0, steps))
    first = loader_of(*options)
    begun = iter(first)
    read = [next(begun) for _ in range(stop)]
    second = loader_of(*options)
    second.load_state_dict(first.state_dict())
    read += list(second)
    assert len(read) == steps and all(map(same, read, whole))
    again = list(second)  # a loader that has come to its end starts anew
    assert len(again) == steps and all(map(same, again, whole))
    k = data.draw(st.integers(0, steps - 1))
    assert same(loader_of(*options).batch(k), whole[k])


@settings(max_examples=40, deadline=None)  # a busy machine is slow, not wrong
@given(loaders, st.data())
def test_devices_share_the_same_batches_also_after_a_resume_on_others(options: Any, data: st.DataObject) -> None:
    """On 1, 2 and 4 devices batch k holds the same windows, whatever the devices were before a stop."""
    own, public, share, _, steps = options
    batch_size = data.draw(st.sampled_from([4, 8]))
    alone = TrainLoader(Stream(windows_of(own), 0), Stream(windows_of(public, first=1001), 0), share, batch_size, steps)
    whole = list(alone)
    stop = data.draw(st.integers(0, steps))
    state: dict[str, Any] = {"step": 0}
    read: list[Batch] = []
    for first, last, devices in ((0, stop, data.draw(st.sampled_from([1, 2, 4]))), (stop, steps, 4)):
        loaders_ = [
            TrainLoader(alone.own, alone.public, share, batch_size, steps, Seat(rank, devices))
            for rank in range(devices)
        ]
        for loader in loaders_:
            loader.load_state_dict(state)
        for parts, _ in zip(zip(*loaders_, strict=True), range(last - first), strict=False):
            batch = {name: torch.empty_like(whole[0][name]) for name in whole[0]}
            for rank, part in enumerate(parts):
                for name, rows_ in part.items():
                    batch[name][rank::devices] = rows_
            read.append(batch)
            state = loaders_[-1].state_dict()
            if len(read) == last:
                break
    assert len(read) == steps and all(map(same, read, whole))


def test_a_loader_knows_its_length_and_needs_public_text_for_a_share() -> None:
    assert len(loader_of(5, 0, 0.0, 2, 7)) == 7
    assert all(batch["own"].all() for batch in loader_of(5, 0, 0.0, 2, 7))
    with pytest.raises(AssertionError, match=r"a share of 0.25 needs public text"):
        loader_of(5, 0, 0.25, 2, 7)


# --- held-out batches


@given(st.integers(1, 20), st.integers(1, 8), st.integers(1, 25))
def test_measured_windows_come_in_their_order_up_to_a_limit_from_all_of_the_text(
    count: int, batch_size: int, limit: int
) -> None:
    loader = EvalLoader(windows_of(count), batch_size, limit)
    for _ in range(2):
        batches = [rows(batch) for batch in loader]
        places = list(chain.from_iterable(batches))
        kept = min(count, limit)
        assert places == [n * count // kept for n in range(kept)] and len(set(places)) == kept
        assert len(batches) == len(loader)
        assert all(len(batch) == batch_size for batch in batches[:-1])
