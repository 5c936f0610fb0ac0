"""`flexo-quantize`: what is in the folder, who may leave it, and what is refused."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import merge.commands.flexo_merge
import merge.commands.flexo_optout
from merge.commands.flexo_quantize import main
from merge.formats.architecture import merged_ffn
from merge.formats.manifest import read_manifest
from merge.formats.quantization import Scheme
from tests.merge.tools import call, listing

Make = Callable[..., Path]
FILES = ("model.safetensors", "config.json", "tokenizer.json")


@pytest.fixture
def model(make_expert: Make, tmp_path: Path) -> Path:
    """public, math and news."""
    assert (
        call(merge.commands.flexo_merge.main, make_expert("math"), make_expert("news"), "-o", tmp_path / "model") == 0
    )
    return tmp_path / "model"


@pytest.mark.parametrize("bits", [4, 8])
def test_experts_are_quantised_and_nothing_else(model: Path, tmp_path: Path, bits: int) -> None:
    assert call(main, model, "--bits", bits, "-o", tmp_path / "q") == 0
    before, after = load_file(model / "model.safetensors"), load_file(tmp_path / "q" / "model.safetensors")
    scheme = Scheme(bits, 16)
    for name, tensor in before.items():
        if ".experts." not in name:
            assert torch.equal(after.pop(name), tensor)
            continue
        packed, scale, shape = (after.pop(f"{name}_{part}") for part in ("packed", "scale", "shape"))
        whole, expected = scheme.quantize(tensor.numpy(), "F32")
        assert (scheme.unpack(packed.numpy().tobytes(), tensor.shape) == whole).all()
        assert (scale.numpy() == expected).all() and shape.tolist() == list(tensor.shape)
    assert after == {}
    manifest = read_manifest(tmp_path / "q")
    assert manifest["quantised"] == {"bits": bits, "group_size": 16}
    packed_name = merged_ffn(0, 1, "up_proj") + "_packed"
    data = load_file(tmp_path / "q" / "model.safetensors")[packed_name].numpy()
    title = f"I32 {list(data.shape)}\n".encode()
    assert manifest["tensors"][packed_name] == hashlib.sha256(title + data.tobytes()).hexdigest()
    assert "4 bits" in (tmp_path / "q" / "README.md").read_text() or bits == 8


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_leaving_and_quantising_come_in_either_order(make_expert: Make, tmp_path: Path, dtype: str) -> None:
    experts = [make_expert(domain) for domain in ("math", "news", "law")]
    shards = ["--max-shard-size", "1MB", "--dtype", dtype]
    assert call(merge.commands.flexo_merge.main, *experts, *shards, "-o", tmp_path / "m") == 0
    assert call(main, tmp_path / "m", "--bits", 4, "-o", tmp_path / "q") == 0
    assert call(merge.commands.flexo_optout.main, tmp_path / "q", "--drop", "news", "-o", tmp_path / "left") == 0
    assert call(merge.commands.flexo_merge.main, experts[0], experts[2], *shards, "-o", tmp_path / "never") == 0
    assert call(main, tmp_path / "never", "--bits", 4, "-o", tmp_path / "expected") == 0
    for name in FILES:
        assert (tmp_path / "left" / name).read_bytes() == (tmp_path / "expected" / name).read_bytes(), name
    left, expected = read_manifest(tmp_path / "left"), read_manifest(tmp_path / "expected")
    assert left["tensors"] == expected["tensors"] and left["quantised"] == expected["quantised"]
    assert [entry["domain"] for entry in left["left"]] == ["news"]


def test_refusals_write_nothing(
    model: Path, make_expert: Make, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert call(main, model, "-o", tmp_path / "q") == 0
    law, math = make_expert("law"), make_expert("math", seed=1)
    (tmp_path / "damaged").mkdir()
    for path in model.iterdir():
        (tmp_path / "damaged" / path.name).write_bytes(path.read_bytes())
    weights = bytearray((model / "model.safetensors").read_bytes())
    weights[-1] ^= 1
    (tmp_path / "damaged" / "model.safetensors").write_bytes(weights)
    (tmp_path / "wrong").mkdir()
    for path in (tmp_path / "q").iterdir():
        (tmp_path / "wrong" / path.name).write_bytes(path.read_bytes())
    other = read_manifest(tmp_path / "q") | {"quantised": {"bits": 4, "group_size": 16}}
    (tmp_path / "wrong" / "manifest.json").write_text(json.dumps(other))
    before = listing(tmp_path)
    for command, arguments, code, message in (
        (main, [tmp_path / "q"], 1, "quantised to 8 bits already"),
        (main, [model, "--bits", 3], 2, "expected 8 or 4"),
        (main, [model, "--group-size", 32], 1, "Give one of 8, 16."),
        (main, [law.parent], 1, "no manifest.json"),
        (main, [tmp_path / "damaged"], 1, "does not match the sha256"),
        (merge.commands.flexo_optout.main, [tmp_path / "wrong", "--drop", "math"], 1, "its config.json asks for"),
        (merge.commands.flexo_merge.main, [tmp_path / "q", law], 1, "Experts can leave it"),
        (merge.commands.flexo_merge.main, [tmp_path / "q", "--replace", f"math={math}"], 1, "Experts can leave it"),
    ):
        assert call(command, *arguments, "-o", tmp_path / "new") == code
        assert message in " ".join(capsys.readouterr().err.replace("│", " ").split()), message
        assert listing(tmp_path) == before
