"""`flexo-check`, and the merge that is not kept when it does not pass."""

from __future__ import annotations

import gzip
import json
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

import inference.check
import inference.commands.flexo_check
import merge.commands.flexo_merge
from flexo.console import Advance
from inference.check import check, in_float32, reference_tokens
from inference.load import load_model
from tests.inference.models import load
from tests.merge.tiny import with_reference
from tests.merge.tools import call, listing

Make = Callable[..., Path]


@pytest.fixture(scope="module")
def anchor(tiny_anchor: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny anchor with a public reference text."""
    return with_reference(tiny_anchor, tmp_path_factory.mktemp("check") / "anchor")


def change(folder: Path, name: str, to: Callable[[torch.Tensor], torch.Tensor]) -> None:
    tensors = load_file(folder / "model.safetensors")
    tensors[name] = to(tensors[name]).clone()
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})


def inputs_of(model: Any, n: int, x_BT: torch.Tensor) -> torch.Tensor:
    """What reaches the router of layer `n`, [N, D]."""
    seen: list[torch.Tensor] = []
    hook = model.model.layers[n].mlp.register_forward_pre_hook(lambda _module, given: seen.append(given[0]))
    model(x_BT)
    hook.remove()
    return seen[0].flatten(0, 1)


def test_a_sound_model_passes(merged: Path, anchor: Path, tiny_anchor: Path) -> None:
    found = check(merged, anchor)
    assert found.faults == [] and found.public_difference < 1e-5 and found.tokens == 256
    for layer in found.routing.layers:
        assert sum(layer.share) == pytest.approx(1) and sum(layer.heaviest) == pytest.approx(1)
        assert 0 < layer.entropy < 2  # bits, of four experts
    without = check(merged, tiny_anchor)
    assert without.faults == [] and without.text == "random tokens" and without.loss_merged is None


def test_a_rounded_model_is_compared_with_its_rounded_anchor(make_expert: Make, anchor: Path, tmp_path: Path) -> None:
    assert (
        call(
            merge.commands.flexo_merge.main,
            make_expert("math"),
            "-o",
            tmp_path / "m",
            "--dtype",
            "bfloat16",
            "--no-check",
        )
        == 0
    )
    assert check(tmp_path / "m", anchor).public_difference < 1e-5


def test_what_is_wrong_is_named(copied: Path, anchor: Path, capsys: pytest.CaptureFixture[str]) -> None:
    swallow = "model.layers.1.mlp.gate.weight"
    change(copied, swallow, lambda rows_ED: rows_ED * torch.tensor([0.0, 0.0, 1e4, 0.0])[:, None])
    assert not any("takes" in fault for fault in check(copied, anchor).faults)  # half of the tokens are no collapse
    change(copied, "model.layers.0.mlp.experts.0.up_proj.weight", lambda weight: weight.flip(0))
    assert call(inference.commands.flexo_check.main, copied, "--anchor", anchor) == 1
    assert "with the public expert alone, logits differ from the anchor's" in capsys.readouterr().err
    change(copied, "model.layers.2.mlp.experts.2.down_proj.weight", lambda weight: weight * torch.inf)
    faults = check(copied, anchor).faults
    assert any("hidden states behind layer 2 hold NaN" in fault for fault in faults), faults


def test_of_a_large_model_short_windows_are_read_and_no_document_fills_them(
    copied: Path, anchor: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(inference.check, "LARGE", 0)
    monkeypatch.setattr(inference.check, "SHORT", 4)
    found = check(copied, anchor)
    assert found.tokens == 2 * 4 and not found.faults
    _, tokenizer = load_model(copied)
    with gzip.open(anchor / "flexo/public/test.jsonl.gz", "rt", encoding="utf-8") as lines:
        documents = [tokenizer(json.loads(line)["text"])["input_ids"] for line in lines]
    text_BT, _ = reference_tokens(anchor, tokenizer, load(copied).config, 4)
    assert text_BT.flatten().tolist() == [token for ids in documents for token in ids[:4]]


def test_a_collapse_is_no_fault_where_all_experts_are_the_same(copied: Path, anchor: Path) -> None:
    gate = "model.layers.1.mlp.gate.weight"
    rows = load_file(copied / "model.safetensors")[gate]
    with torch.no_grad():
        model, tokenizer = load_model(copied)
        text_BT, _ = reference_tokens(anchor, tokenizer, model.config)
        x_ND = inputs_of(model, 1, text_BT)
        least_D = torch.linalg.lstsq(x_ND, torch.full((len(x_ND), 1), 1.0)).solution[:, 0]  # as near to 1 as can be
    change(copied, gate, lambda _: torch.stack([0 * rows[0], 0 * rows[0], 50 * least_D, 0 * rows[0]]))
    assert any("in layer 1, news takes" in fault for fault in check(copied, anchor).faults)
    for part in ("gate_proj", "up_proj", "down_proj"):
        tensors = load_file(copied / "model.safetensors")
        for e in (1, 2, 3):
            same = tensors[f"model.layers.1.mlp.experts.0.{part}.weight"]
            change(copied, f"model.layers.1.mlp.experts.{e}.{part}.weight", lambda _, same=same: same)
    found = check(copied, anchor)
    assert [layer.chooses for layer in found.routing.layers] == [True, False, True]
    assert not any("takes" in fault for fault in found.faults)


def test_a_merge_that_does_not_pass_is_not_kept(
    make_expert: Make, anchor: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The passing way, in a process too, is in tests/test_wheel.py."""
    path = make_expert("math", anchor=anchor, path=tmp_path / "math.pt")
    damaged = shutil.copytree(anchor, tmp_path / "anchor")
    with gzip.open(damaged / "flexo/public/test.jsonl.gz", "wt") as file:
        file.write("no JSON")
    before = listing(tmp_path)
    assert call(merge.commands.flexo_merge.main, path, "-o", tmp_path / "other", "--anchor", damaged, "--check") == 1
    err = capsys.readouterr().err
    assert "did not pass its check, and was not kept" in err and "test.jsonl.gz: cannot be read" in err
    assert listing(tmp_path) == before


def test_logits_come_in_parts_and_progress_comes_to_its_end(
    copied: Path, anchor: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    totals: list[float | None] = []
    done: list[float] = []

    @contextmanager
    def progress(_label: str, total: float | None) -> Iterator[Advance]:
        totals.append(total)
        yield done.append

    whole = check(copied, anchor, progress=progress)
    assert len(totals) == 1 and sum(done) == pytest.approx(totals[0], rel=0.02)  # a selection has fewer rows
    monkeypatch.setattr("inference.check.LOGITS", 7 * 96)
    parts = check(copied, anchor)
    assert parts.public_difference == pytest.approx(whole.public_difference, abs=1e-6)
    assert (parts.loss_anchor, parts.loss_merged) == pytest.approx((whole.loss_anchor, whole.loss_merged))
    change(copied, "lm_head.weight", lambda weight: weight.index_fill(0, torch.tensor([90]), torch.inf))
    assert any("the logits of the vocabulary hold NaN" in fault for fault in check(copied, anchor).faults)


def test_logits_of_the_last_position_count_too(merged: Path) -> None:
    model, x_BT = load(merged), torch.randint(1, 96, (2, 16), generator=torch.Generator().manual_seed(0))
    state_BTD = torch.zeros(2, 16, model.config.hidden_size)
    assert inference.check._loss(model, state_BTD, x_BT)[1]
    state_BTD[1, -1] = torch.nan
    assert not inference.check._loss(model, state_BTD, x_BT)[1]


def test_one_layer_at_a_time_is_in_float32(merged: Path) -> None:
    x_BT = torch.randint(1, 96, (2, 16), generator=torch.Generator().manual_seed(0))
    model = load(merged, dtype=torch.bfloat16)
    whole = torch.nn.Module.float(load(merged, dtype=torch.bfloat16))
    wide: list[list[bool]] = []
    layers = model.model.layers
    for layer in layers:
        layer.mlp.register_forward_hook(
            lambda *_: wide.append([one.mlp.experts.down_proj.dtype == torch.float32 for one in layers])
        )
    in_float32(model)
    with torch.inference_mode():
        assert torch.equal(model(x_BT).logits, whole(x_BT).logits)
    assert wide == torch.eye(3, dtype=torch.bool).tolist()
    assert {parameter.dtype for parameter in model.parameters()} == {torch.bfloat16}
