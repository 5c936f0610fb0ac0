"""Models with packed experts: the logits are those of the dequantised weights, here and in transformers."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from inference.check import check
from inference.load import load_model
from inference.packed_experts import PackedExperts
from inference.select import select_experts
from merge.formats.quantization import Scheme
from merge.planning.membership import replan
from merge.planning.merge_plan import execute
from merge.planning.quantize import quantized_plan
from tests.inference.models import load

Make = Callable[..., Path]
BITS = (4, 8)


@pytest.fixture(scope="module")
def packed(merged: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[int, Path]:
    """The merged folder in 4 and in 8 bits."""
    folder = tmp_path_factory.mktemp("packed")
    for bits in BITS:
        execute(quantized_plan(merged, bits), folder / str(bits))
    return {bits: folder / str(bits) for bits in BITS}


def logits(model: torch.nn.Module) -> torch.Tensor:
    x_BT = torch.randint(96, (2, 24), generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        return model(input_ids=x_BT).logits


@pytest.mark.parametrize("bits", BITS)
def test_logits_are_those_of_dequantised_weights(
    packed: dict[int, Path], copied: Path, bits: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    tensors = load_file(copied / "model.safetensors")
    for name, tensor in tensors.items():
        if ".experts." in name:
            scheme = Scheme(bits, 16)
            tensors[name] = torch.from_numpy(scheme.dequantize(*scheme.quantize(tensor.numpy(), "F32")))
    save_file(tensors, copied / "model.safetensors", {"format": "pt"})
    expected = logits(load(copied, experts_implementation="eager"))
    model, _ = load_model(packed[bits])
    assert isinstance(model.model.layers[0].mlp.experts, PackedExperts)
    assert torch.equal(logits(model), expected)
    monkeypatch.setattr("inference.packed_experts.AT_ONCE", 100)  # a few rows at a time
    assert torch.allclose(logits(model), expected, atol=1e-5)
    held = sum(p.numel() * p.element_size() for n, p in model.named_parameters() if ".experts." in n)
    assert held == sum(t.numel() for n, t in tensors.items() if ".experts." in n) * (bits / 8 + 4 / 16)


def test_transformers_reads_the_same_logits(packed: dict[int, Path]) -> None:
    pytest.importorskip("compressed_tensors")
    for folder in packed.values():
        model = load(folder, experts_implementation="eager")
        assert torch.equal(logits(model), logits(load_model(folder)[0]))


def test_a_selection_is_what_the_folder_without_the_others_says(packed: dict[int, Path], tmp_path: Path) -> None:
    execute(replan(packed[4], drop=["news"]), tmp_path / "left")
    model, _ = load_model(packed[4])
    with select_experts(model, ["public", "math", "code"]):
        chosen = logits(model)
    assert torch.equal(chosen, logits(load_model(tmp_path / "left")[0]))


def test_a_cast_reaches_the_scales(packed: dict[int, Path]) -> None:
    model, _ = load_model(packed[8], "bfloat16")
    assert model.model.layers[0].mlp.experts.down_proj_scale.dtype == torch.bfloat16
    assert logits(model).dtype == torch.bfloat16


def test_the_check_quantises_the_anchor_alike(packed: dict[int, Path], tiny_anchor: Path) -> None:
    for folder in packed.values():
        found = check(folder, tiny_anchor)
        assert found.faults == [] and found.public_difference < 1e-5
