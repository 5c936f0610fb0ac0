"""The expert file: round trips, the files of version 1 that must stay readable, and what strangers may send."""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from flexo.errors import ExpertFileError, InputError
from merge.formats.anchor_folder import open_anchor
from merge.formats.architecture import expert_tensors
from merge.formats.expert_file import open_expert, write_expert
from merge.formats.expert_header import Header
from merge.tensor_io.stored_tensor import StoredTensor
from tests.merge.tiny import expert_header, expert_values
from tests.merge.tools import listing

GOLDEN = Path(__file__).resolve().parents[2] / "golden"
CONTAINERS = ["pt", "safetensors"]


@pytest.fixture(scope="module")
def header(tiny_anchor: Path) -> Header:
    return expert_header("math", open_anchor(tiny_anchor))


@pytest.fixture(scope="module")
def values(tiny_anchor: Path) -> dict[str, torch.Tensor]:
    return expert_values("math", open_anchor(tiny_anchor), bias=True)


@pytest.fixture
def file(tmp_path: Path, header: Header, values: dict[str, torch.Tensor]) -> Path:
    write_expert(tmp_path / "math.pt", header, values)
    return tmp_path / "math.pt"


def refused(path: Path, message: str) -> str:
    """Asserts that opening, or reading every tensor, is refused with one message that begins with the path."""
    with pytest.raises(ExpertFileError, match=message) as refusal:
        expert = open_expert(path)
        for name in expert.header.tensors:
            expert.tensor(name)
    text = str(refusal.value)
    assert text.startswith(f"{path}: ") and text.isprintable() and len(text) < 800
    return text


# --- what is written can be read


@pytest.mark.parametrize("container", CONTAINERS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_both_containers_keep_every_bit(
    tmp_path: Path, header: Header, values: dict[str, torch.Tensor], container: str, dtype: torch.dtype
) -> None:
    values = {name: tensor.to(dtype) for name, tensor in values.items()}
    values["layers.0.router.weight"][0] = -0.0
    path = tmp_path / f"math.{container}"
    written = write_expert(path, header, values)
    expert = open_expert(path)
    assert expert.header == written == replace(header, tensors=written.tensors)
    assert expert.domain == "math" and expert.has_bias
    assert expert.header.tensors.keys() == values.keys()
    for name, tensor in values.items():
        assert expert.tensor(name).dtype == dtype
        assert torch.equal(expert.tensor(name).view(torch.uint8), tensor.view(torch.uint8))
    assert listing(tmp_path) == {path.name}


@pytest.mark.parametrize(
    ("name", "dtype"),
    [
        ("expert-v1.pt", torch.bfloat16),
        ("expert-v1.safetensors", torch.float32),
        ("expert-v2.pt", torch.bfloat16),
        ("expert-v2.safetensors", torch.float32),
    ],
)
def test_golden_files_of_all_versions_stay_readable(name: str, dtype: torch.dtype) -> None:
    """These files were written once, by the first release of each version, and are never written again."""
    expert = open_expert(GOLDEN / name)
    assert json.loads(json.dumps(expert.header.to_dict())) == json.loads((GOLDEN / f"{name}.json").read_text())
    start = 0
    for tensor_name in sorted(expert_tensors(expert.header.anchor.architecture, bias=expert.has_bias)):
        tensor = expert.tensor(tensor_name)
        counted = (torch.arange(start, start + tensor.numel()) % 61 - 30) / 8
        assert torch.equal(tensor, counted.reshape(tensor.shape).to(dtype))
        start += tensor.numel()
    assert expert.has_bias == name.endswith(".pt")


@pytest.mark.parametrize("name", ["expert-v2-factors.pt", "expert-v2-factors.safetensors"])
def test_golden_files_with_factors_stay_readable(name: str, tmp_path: Path) -> None:
    """Written once, too: factors of rank 2 that count up, scale 1/4, and weights formed on a public network of ones."""
    expert = open_expert(GOLDEN / name)
    assert json.loads(json.dumps(expert.header.to_dict())) == json.loads((GOLDEN / f"{name}.json").read_text())
    for weight, info in expert.header.tensors.items():
        if not weight.endswith("_proj.weight"):
            continue
        left, right = (expert.tensor(weight.replace("weight", part)) for part in ("left", "right"))
        assert torch.equal(left, torch.arange(left.numel(), dtype=torch.int16).view(left.shape))
        (tmp_path / "ones").write_bytes(torch.ones(info.shape).numpy().tobytes())
        public = StoredTensor(tmp_path / "ones", "ones", "F32", info.shape, 0, info.nbytes)
        formed = torch.frombuffer(expert.formed(weight, public), dtype=torch.float32).view(info.shape)
        assert torch.equal(formed, 1 + left.float() @ right.float() / 4)


@pytest.mark.parametrize("container", CONTAINERS)
def test_a_file_is_as_large_as_its_tensors_and_header(
    tmp_path: Path, header: Header, values: dict[str, torch.Tensor], container: str
) -> None:
    storage = torch.zeros(1_000_000)
    views = {}
    for name, tensor in values.items():
        views[name] = storage[: tensor.numel()].view(tensor.shape).copy_(tensor) if container == "pt" else tensor
    views["layers.0.gate_proj.weight"] = values["layers.0.gate_proj.weight"].t().contiguous().t()
    path = tmp_path / f"math.{container}"
    written = write_expert(path, header, views)
    tensors = sum(tensor.nbytes for tensor in values.values())
    assert open_expert(path).nbytes == tensors
    assert path.stat().st_size <= tensors + 2 * len(written.to_json()) + 512 * len(values) + 2048


@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
def test_what_stands_under_two_names_is_written_twice(
    tmp_path: Path, header: Header, values: dict[str, torch.Tensor], suffix: str
) -> None:
    gate, up = (next(name for name in sorted(values) if part in name) for part in ("gate_proj", "up_proj"))
    write_expert(tmp_path / f"math{suffix}", header, values | {up: values[gate]})
    read = open_expert(tmp_path / f"math{suffix}")
    assert torch.equal(read.tensor(up), values[gate]) and torch.equal(read.tensor(gate), values[gate])


def test_tensors_stay_on_disk_until_asked_for(file: Path, values: dict[str, torch.Tensor]) -> None:
    """Values are mapped: a change on disk after opening is seen, and caught, when the tensor is asked for."""
    expert = open_expert(file)
    needle = values["layers.1.up_proj.weight"].numpy().tobytes()
    at = file.read_bytes().index(needle)
    with file.open("r+b") as stream:
        stream.seek(at)
        stream.write(bytes(4))
    expert.tensor("layers.0.up_proj.weight")
    with pytest.raises(ExpertFileError, match=r"layers\.1\.up_proj\.weight does not match the sha256"):
        expert.tensor("layers.1.up_proj.weight")


@pytest.mark.parametrize("layers", [1, 199, 200, 201, 400])
def test_any_number_of_layers_is_read(tmp_path: Path, header: Header, layers: int) -> None:
    """A pickle comes in batches of a thousand entries, that is 200 layers with a bias."""
    sizes: dict[str, Any] = {"num_hidden_layers": layers, "hidden_size": 2, "intermediate_size": 3}
    arch = replace(header.anchor.architecture, **sizes)
    header = replace(header, anchor=replace(header.anchor, architecture=arch))
    values = {name: torch.zeros(shape) for name, shape in expert_tensors(arch, bias=True).items()}
    write_expert(tmp_path / "x.pt", header, values)
    assert open_expert(tmp_path / "x.pt").header.tensors.keys() == values.keys()


# --- what is not written


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.pop("layers.2.router.weight"), "Missing: .'layers.2.router.weight'"),
        (lambda t: t.pop("layers.2.router.bias"), "Missing: .'layers.2.router.bias'"),
        (lambda t: t.update({"layers.3.router.weight": torch.zeros(32)}), "Not expected: .'layers.3.router.weight'"),
        (lambda t: t.update({"model.embed_tokens.weight": torch.zeros(2)}), "Not expected: .'model.embed_tokens"),
        (lambda t: t.update({"layers.0.router.weight": torch.zeros(33)}), r"is \(33,\), .* \(32,\)"),
        (lambda t: t.update({"layers.0.router.weight": torch.zeros(1, 32)}), r"is \(1, 32\), .* \(32,\)"),
        (lambda t: t.update({"layers.0.router.weight": torch.zeros(32).double()}), "dtype F64"),
        (lambda t: t.update({"layers.0.router.weight": torch.zeros(32).long()}), "dtype I64"),
        (lambda t: t.update({"layers.0.router.weight": torch.zeros(32) + 0j}), "dtype torch.complex64"),
        (lambda t: t.update({"layers.0.router.weight": torch.full((32,), torch.nan)}), "NaN or infinite"),
        (lambda t: t.update({"layers.0.router.bias": torch.tensor([torch.inf])}), "NaN or infinite"),
    ],
)
@pytest.mark.parametrize("container", CONTAINERS)
def test_what_would_be_refused_is_not_written(
    tmp_path: Path,
    header: Header,
    values: dict[str, torch.Tensor],
    container: str,
    change: Callable[[dict[str, torch.Tensor]], object],
    message: str,
) -> None:
    tensors = dict(values)
    change(tensors)
    with pytest.raises(ExpertFileError, match=message):
        write_expert(tmp_path / f"math.{container}", header, tensors)
    assert listing(tmp_path) == set()


def test_a_header_that_would_be_refused_is_not_written(
    tmp_path: Path, header: Header, values: dict[str, torch.Tensor]
) -> None:
    with pytest.raises(ExpertFileError, match="is no domain name"):
        write_expert(tmp_path / "x.pt", replace(header, domain="../x"), values)
    with pytest.raises(ExpertFileError, match=r"header\.title"):
        write_expert(tmp_path / "x.pt", replace(header, title="two\nlines"), values)
    assert listing(tmp_path) == set()


def test_a_file_that_stands_there_is_replaced_on_request_only(
    file: Path, header: Header, values: dict[str, torch.Tensor]
) -> None:
    before = file.read_bytes()
    with pytest.raises(InputError, match="exists already"):
        write_expert(file, header, values)
    assert file.read_bytes() == before
    write_expert(file, replace(header, title="another"), values, replace=True)
    assert open_expert(file).header.title == "another"


@pytest.mark.parametrize("container", CONTAINERS)
@pytest.mark.parametrize("error", [KeyboardInterrupt(), OSError(errno.ENOSPC, "full")])
def test_an_interrupted_write_leaves_the_old_file(
    tmp_path: Path,
    header: Header,
    values: dict[str, torch.Tensor],
    monkeypatch: pytest.MonkeyPatch,
    container: str,
    error: BaseException,
) -> None:
    path = tmp_path / f"math.{container}"
    write_expert(path, header, values)
    before = path.read_bytes()

    def stop(*_args: object) -> None:
        raise error

    monkeypatch.setattr("os.fsync", stop)
    with pytest.raises(KeyboardInterrupt if isinstance(error, KeyboardInterrupt) else InputError):
        write_expert(path, replace(header, title="another"), values, replace=True)
    assert path.read_bytes() == before and listing(tmp_path) == {path.name}


@pytest.mark.parametrize("container", CONTAINERS)
def test_a_disk_that_fills_up_on_the_way(
    small_disk: Path, header: Header, values: dict[str, torch.Tensor], container: str
) -> None:
    with pytest.raises(InputError, match="the disk is full"):
        write_expert(small_disk / f"math.{container}", header, values)
    assert listing(small_disk) == set()


# --- what strangers send


def test_no_file_and_no_content(tmp_path: Path) -> None:
    refused(tmp_path / "none.pt", "no such file")
    refused(tmp_path, "a folder")
    (tmp_path / "empty.pt").touch()
    refused(tmp_path / "empty.pt", "the file is empty")
    os.mkfifo(tmp_path / "fifo.pt")
    refused(tmp_path / "fifo.pt", "expected an expert file")
    (tmp_path / "text.pt").write_text("hello\x1b[2J" * 100)
    refused(tmp_path / "text.pt", "neither a PyTorch zip nor a safetensors file")
    refused(tmp_path / ("x" * 300), "File name too long")


def test_a_file_without_permission_is_refused(locked: Path) -> None:
    refused(locked / "file", "cannot be read .Permission denied")


@pytest.mark.parametrize("container", CONTAINERS)
def test_every_cut_is_refused(tmp_path: Path, header: Header, values: dict[str, torch.Tensor], container: str) -> None:
    path = tmp_path / f"math.{container}"
    write_expert(path, header, values)
    data = path.read_bytes()
    cuts = {*range(0, 40), *range(0, len(data), 997), *range(len(data) - 30, len(data))}
    for size in sorted(cuts):
        path.write_bytes(data[:size])
        refused(path, "empty|cut|damaged|neither")
