from __future__ import annotations

import struct
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from flexo.errors import ModelFolderError
from merge.formats.model_folder import ModelFolder
from merge.tensor_io.json_file import read_json, write_json
from merge.tensor_io.shard_writer import write_tensors
from merge.tensor_io.stored_tensor import OutputTensor
from merge.tensor_io.torch_tensors import computed_tensor, tensor_digest
from tests.merge.tools import listing

TENSORS = {
    "a": torch.arange(12.0).reshape(3, 4),
    "b": torch.arange(6, dtype=torch.bfloat16),
    "c": torch.tensor([[1, -1]], dtype=torch.int64),
    "d": torch.arange(5, dtype=torch.float16)[::2],
}


def outputs(tensors: dict[str, torch.Tensor]) -> list[OutputTensor]:
    return [computed_tensor(n, tuple(t.shape), t.dtype, partial(tensors.__getitem__, n)) for n, t in tensors.items()]


def model(folder: Path, shards: dict[str, dict[str, torch.Tensor]], weight_map: object = None) -> Path:
    """A model folder with these files, and an index if a weight map is given."""
    folder.mkdir(exist_ok=True)
    write_json(folder / "config.json", {})
    for name, tensors in shards.items():
        save_file({key: value.contiguous() for key, value in tensors.items()}, folder / name)
    if weight_map is not None:
        write_json(folder / "model.safetensors.index.json", {"weight_map": weight_map})
    return folder


@pytest.mark.parametrize("limit", [1, 60, 10**9])
def test_what_is_streamed_is_what_safetensors_reads(tmp_path: Path, limit: int) -> None:
    told: list[float] = []
    write_tensors(tmp_path, outputs(TENSORS), limit, told.append)
    where = {name: path for path in tmp_path.glob("*.safetensors") for name in load_file(path)}
    read = {name: load_file(path)[name] for name, path in where.items()}
    assert read.keys() == TENSORS.keys() and all(torch.equal(read[name], TENSORS[name]) for name in TENSORS)
    assert sorted(told) == sorted(tensor.nbytes for tensor in outputs(TENSORS))
    if limit == 10**9:
        assert listing(tmp_path) == {"model.safetensors"}
        length = struct.unpack("<Q", (tmp_path / "model.safetensors").read_bytes()[:8])[0]
        assert length % 8 == 0  # the data begin aligned
    else:
        index = read_json(tmp_path / "model.safetensors.index.json")
        assert index["metadata"]["total_size"] == sum(tensor.nbytes for tensor in outputs(TENSORS))
        assert index["weight_map"] == {name: path.name for name, path in where.items()}
        assert set(index["weight_map"].values()) | {"model.safetensors.index.json"} == listing(tmp_path)
        assert len(set(where.values())) == {1: 4, 60: 2}[limit]


def test_a_tensor_that_is_not_as_planned_is_our_own_mistake(tmp_path: Path) -> None:
    with pytest.raises(AssertionError, match=r"a: planned 12 bytes, made 8"):
        write_tensors(tmp_path, [OutputTensor("a", "F32", (3,), lambda: bytes(8))], 10**9, lambda _n: None)


def test_the_digest_does_not_depend_on_sharding_but_on_all_else(tmp_path: Path) -> None:
    def digest(name: str, tensors: dict[str, torch.Tensor], limit: int = 10**9) -> str:
        folder = model(tmp_path / name, {})
        write_tensors(folder, outputs(tensors), limit, lambda _n: None)
        told: list[float] = []
        opened = ModelFolder(folder)
        digest = opened.digest(told.append)
        assert sum(told) == opened.nbytes == sum(tensor.nbytes for tensor in tensors.values())
        return digest

    whole = digest("whole", TENSORS)
    assert digest("sharded", TENSORS, 1) == whole
    assert digest("turned", dict(reversed(TENSORS.items()))) == whole
    others = [
        {**TENSORS, "a": TENSORS["a"] + 1},
        {**TENSORS, "a": TENSORS["a"].reshape(4, 3)},
        {**TENSORS, "a": TENSORS["a"].view(torch.int32)},
        {("A" if name == "a" else name): tensor for name, tensor in TENSORS.items()},
    ]
    assert len({whole, *(digest(str(number), other) for number, other in enumerate(others))}) == 5


def test_the_digest_of_a_tensor_is_over_its_values_in_c_order() -> None:
    tensor = torch.arange(12.0).reshape(3, 4)
    assert tensor_digest(tensor.t().contiguous().t()) == tensor_digest(tensor)
    assert tensor_digest(tensor.requires_grad_()) == tensor_digest(tensor)
    assert tensor_digest(torch.arange(12.0)[::12]) == tensor_digest(torch.zeros(1))  # one value, stride 12
    assert tensor_digest(tensor[1:2, :2]) == tensor_digest(torch.tensor([[4.0, 5.0]]))


@pytest.mark.parametrize(
    ("shards", "weight_map", "message"),
    [
        ({}, None, "no model.safetensors"),
        ({}, {}, None),
        ({"x.safetensors": {}}, {"a": "../x.safetensors"}, "'../x.safetensors' is not a plain file name"),
        ({}, {"a": "/etc/passwd"}, "is not a plain file name"),
        ({}, {"a": ".."}, "not a whole safetensors file"),
        ({}, {"a": "missing.safetensors"}, "missing.safetensors: the index names this shard, but it is missing"),
        ({}, {"a": 5}, "no weight_map"),
        ({}, "a", "no weight_map"),
        (
            {"1.safetensors": {"a": TENSORS["a"]}, "2.safetensors": {"a": TENSORS["a"]}},
            {"a": "1.safetensors", "b": "2.safetensors"},
            "2.safetensors: 'a' is also in 1.safetensors",
        ),
        (
            {"model.safetensors": {"a": torch.zeros(4, dtype=torch.float8_e4m3fn)}},
            None,
            "'a' has dtype F8_E4M3, expected one of F64, F32",
        ),
    ],
)
def test_broken_folders_are_refused(tmp_path: Path, shards: Any, weight_map: object, message: str | None) -> None:
    folder = model(tmp_path / "m", shards, weight_map)
    if message is None:
        assert ModelFolder(folder).names == set()
        return
    with pytest.raises(ModelFolderError, match=message):
        ModelFolder(folder)


def test_weights_in_pickles_are_named_but_not_opened(tmp_path: Path) -> None:
    folder = model(tmp_path / "m", {})
    (folder / "pytorch_model.bin").write_bytes(b"x")
    with pytest.raises(ModelFolderError, match=r"found pytorch_model\.bin; convert it to safetensors first"):
        ModelFolder(folder)
    with pytest.raises(ModelFolderError, match="no such folder"):
        ModelFolder(tmp_path / "none")


def test_a_cut_off_shard_is_refused(tmp_path: Path) -> None:
    folder = model(tmp_path / "m", {"model.safetensors": TENSORS})
    data = (folder / "model.safetensors").read_bytes()
    for size in (0, 7, 8, 100, len(data) - 1):
        (folder / "model.safetensors").write_bytes(data[:size])
        with pytest.raises(ModelFolderError, match="not a whole safetensors file"):
            ModelFolder(folder)


def test_names_and_shapes_are_required_exactly(tmp_path: Path) -> None:
    opened = ModelFolder(model(tmp_path / "m", {"model.safetensors": {"a": TENSORS["a"], "b": TENSORS["b"]}}))
    opened.require({"a": (3, 4), "b": (6,)}, "a test")
    with pytest.raises(ModelFolderError, match=r"not a test. Missing: c. Not expected: b\."):
        opened.require({"a": (3, 4), "c": (6,)}, "a test")
    with pytest.raises(ModelFolderError, match=r"a is \(3, 4\), its config.json asks for \(4, 3\)"):
        opened.require({"a": (4, 3), "b": (6,)}, "a test")


@pytest.mark.parametrize(
    "text",
    ["", "[]", "{", "[" * 100_000, "\x00", '{"a": 1', '{"a": 1, "a": 2}', '{"a": [' + "[]," * 1_000_000 + "0]}"],
    ids=range(8),
)
def test_what_is_no_json_object_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "a.json").write_text(text)
    with pytest.raises(ModelFolderError, match=r"a\.json: "):
        read_json(tmp_path / "a.json")


def test_json_that_cannot_be_read_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelFolderError, match="no such file"):
        read_json(tmp_path / "a.json")
    with pytest.raises(ModelFolderError, match=r"cannot be read .Is a directory"):
        read_json(tmp_path)
    (tmp_path / "a.json").write_bytes(b'{"a": "\xff"}')
    with pytest.raises(ModelFolderError, match="not readable as JSON"):
        read_json(tmp_path / "a.json")
    with (tmp_path / "b.json").open("wb") as file:
        file.truncate(65 << 20)
    with pytest.raises(ModelFolderError, match="expected at most 64 MB"):
        read_json(tmp_path / "b.json")
    write_json(tmp_path / "c.json", {"ä": 1})
    assert read_json(tmp_path / "c.json") == {"ä": 1}
