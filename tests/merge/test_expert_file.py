"""The expert file: round trips, the files of version 1 that must stay readable, and what strangers may send."""

from __future__ import annotations

import errno
import json
import os
import pickle
import pickletools
import random
import struct
import zipfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from merge.anchor import open_anchor
from merge.errors import ExpertFileError, InputError
from merge.expert_file import open_expert, write_expert
from merge.flexolmo import expert_tensors
from merge.header import Header, TensorInfo
from tests.merge.tiny import expert_header, expert_values
from tests.merge.tools import listing, rewrite_zip

GOLDEN = Path(__file__).parent.parent / "golden"
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
    ("name", "dtype"), [("expert-v1.pt", torch.bfloat16), ("expert-v1.safetensors", torch.float32)]
)
def test_golden_files_of_version_1_stay_readable(name: str, dtype: torch.dtype) -> None:
    """These files were written once, by the first release of the format, and are never written again."""
    expert = open_expert(GOLDEN / name)
    assert json.loads(json.dumps(expert.header.to_dict())) == json.loads((GOLDEN / f"{name}.json").read_text())
    start = 0
    for tensor_name in sorted(expert_tensors(expert.header.anchor.architecture, bias=expert.has_bias)):
        tensor = expert.tensor(tensor_name)
        counted = (torch.arange(start, start + tensor.numel()) % 61 - 30) / 8
        assert torch.equal(tensor, counted.reshape(tensor.shape).to(dtype))
        start += tensor.numel()
    assert expert.has_bias == (name == "expert-v1.pt")


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


@pytest.mark.parametrize("container", CONTAINERS)
def test_a_flipped_bit_is_refused_or_changes_no_tensor(
    tmp_path: Path, header: Header, values: dict[str, torch.Tensor], container: str
) -> None:
    path = tmp_path / f"math.{container}"
    write_expert(path, header, values)
    data = path.read_bytes()
    dice = random.Random(0)
    for _ in range(300):
        at = dice.choice([dice.randrange(len(data)), dice.randrange(8000), len(data) - 1 - dice.randrange(4000)])
        flipped = bytearray(data)
        flipped[at] ^= 1 << dice.randrange(8)
        path.write_bytes(flipped)
        try:
            expert = open_expert(path)
            read = {name: expert.tensor(name) for name in expert.header.tensors}
        except ExpertFileError as refusal:
            assert str(refusal).isprintable(), at
        else:
            assert read.keys() == values.keys() and all(torch.equal(read[name], values[name]) for name in read), at


class Bomb:
    """Runs a command when unpickled."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (f"touch {self.mark}",)


def content_of(file: Path) -> dict[str, Any]:
    content: dict[str, Any] = torch.load(file, weights_only=True)
    return content


def test_a_pickle_with_code_is_refused_and_never_runs(tmp_path: Path, file: Path) -> None:
    mark = tmp_path / "mark"
    hostile: list[Callable[[dict[str, Any]], Any]] = [
        lambda content: Bomb(mark),
        lambda content: content | {"note": Bomb(mark)},
        lambda content: content | {"header": Bomb(mark)},
        lambda content: content | {"tensors": Bomb(mark)},
        lambda content: content | {"tensors": content["tensors"] | {"layers.0.router.weight": Bomb(mark)}},
        lambda content: content | {"tensors": content["tensors"] | {Bomb(mark): torch.zeros(1)}},
        lambda content: content | {Bomb(mark): 1},
    ]
    original = content_of(file)
    for number, make in enumerate(hostile):
        path = tmp_path / f"{number}.pt"
        torch.save(make(dict(original)), path)
        refused(path, "asks for '(posix|nt|os) system' to be loaded, which no expert file needs. Nothing was run")
    plain = tmp_path / "plain.pt"
    plain.write_bytes(pickle.dumps(Bomb(mark)))
    refused(plain, "neither a PyTorch zip")
    torch.save(Bomb(mark), plain, _use_new_zipfile_serialization=False)
    refused(plain, "neither a PyTorch zip")
    assert not mark.exists()
    torch.load(tmp_path / "0.pt", weights_only=False)
    assert mark.exists()  # the bomb was live


@pytest.mark.parametrize(
    "program",
    [
        b"\x80\x02}" + b")" + b"\x85" * 1_000_000 + b"K\x01s.",  # hashing this key overflows the unpickler's stack
        b"\x80\x02" + b"]" * 300_000 + b"a" * 299_999 + b".",
        b"\x80\x02}q\x00.",
        b"\x80\x02" + b"(" * 600_000,
        b"\x80\x02cbuiltins\neval\n.",
        b"\x80\x04\x8c\x02os\x8c\x06system\x93.",  # a global assembled on the stack
        b"\x80\x02I999999999999999999999\n.",
        b"",
        b"\xff\xff",
        b"\x80\x02}X\xff\xff\xff\xff",
    ],
)
def test_programs_that_no_torch_save_writes_are_refused(tmp_path: Path, file: Path, program: bytes) -> None:
    path = rewrite_zip(file, tmp_path / "x.pt", lambda name, data: program if name == "data.pkl" else data)
    refused(path, "not laid out like an expert file|asks for|not an expert file")


def test_tampered_programs_are_refused_or_change_no_tensor(
    tmp_path: Path, file: Path, values: dict[str, torch.Tensor]
) -> None:
    """Other globals, recalls and bytes where torch.save wrote its own: refused, whatever PyTorch makes of them."""
    with zipfile.ZipFile(file) as archive:
        program = archive.read("archive/data.pkl")
    rebuild, ordered = b"ctorch._utils\n_rebuild_tensor_v2\n", b"ccollections\nOrderedDict\n"
    assert rebuild in program and ordered in program
    tampered = [
        program.replace(rebuild, new) for new in (ordered, b"ctorch\nFloatStorage\n", b"ctorch\nUntypedStorage\n")
    ]
    tampered += [program.replace(ordered, new) for new in (rebuild, b"ctorch\nFloatStorage\n")]
    steps = list(pickletools.genops(program))
    texts = [i for i, (op, *_) in enumerate(steps) if op.name == "BINUNICODE"]
    for i in texts:  # a text in the place of which something earlier is recalled: a dictionary, a tensor, a tuple
        begin, end = steps[i][2], steps[i + 1][2]
        for recalled in (b"h\x00", b"h\x07", b"h\x14", b"h\x13", b"h\xff"):
            tampered.append(program[:begin] + recalled + program[end:])
    dice = random.Random(0)
    for _ in range(200):
        flipped = bytearray(program)
        flipped[dice.randrange(len(program))] = dice.randrange(256)
        tampered.append(bytes(flipped))
    for number, data in enumerate(tampered):
        path = rewrite_zip(
            file,
            tmp_path / "x.pt",
            lambda name, old, data=data: data if name == "data.pkl" else old,  # type: ignore[misc]
        )
        try:
            expert = open_expert(path)
            read = {name: expert.tensor(name) for name in expert.header.tensors}
        except ExpertFileError as refusal:
            assert str(refusal).isprintable(), number
        else:
            assert read.keys() == values.keys() and all(torch.equal(read[name], values[name]) for name in read), number


def saved(path: Path, content: object) -> Path:
    torch.save(content, path)
    return path


def test_other_torch_files_are_refused(tmp_path: Path, file: Path) -> None:
    path, content = tmp_path / "x.pt", content_of(file)
    refused(saved(path, torch.zeros(3)), "not laid out like an expert file")
    refused(saved(path, {}), "not an expert file")
    refused(saved(path, {"model": torch.zeros(3)}), "not laid out like an expert file")
    refused(saved(path, torch.nn.Linear(2, 2).state_dict()), "not laid out like an expert file")
    refused(saved(path, torch.nn.Linear(2, 2)), "asks for 'torch.nn.modules.linear Linear'")
    for format in ("other", 1):
        refused(saved(path, content | {"format": format}), "not an expert file")
    refused(saved(path, content | {"tensors": 5}), "tensors is a int, expected a dictionary")
    refused(saved(path, content | {"tensors": {"layers.0.router.weight": 5}}), "not laid out|is a int")
    refused(saved(path, content | {"header": 5}), "header is a int, expected JSON text")
    refused(saved(path, content | {"note": "private text"}), "not part of version 1: .'note'")
    refused(saved(path, {key: value for key, value in content.items() if key != "tensors"}), "missing or not part")


@pytest.mark.parametrize("version", [0, 2, "1", "1.0", 10**12])
def test_other_versions_are_refused(tmp_path: Path, file: Path, version: object) -> None:
    path = saved(tmp_path / "x.pt", content_of(file) | {"version": version})
    refused(path, f"expert file version '{version}', this flexo reads version 1. Update flexo")


@pytest.mark.parametrize(
    "change",
    [
        lambda t: torch.nn.Parameter(t),
        lambda t: t.to_sparse(),
        lambda t: t.clone().requires_grad_(),
        lambda t: t.to("meta"),
        lambda t: t.new_zeros(2000)[: t.numel()].view(t.shape),
        lambda t: torch.stack([t, t], -1)[..., 0],
        lambda t: torch.zeros(1).expand(t.shape),
        lambda t: (t + 0j).conj().imag if t.dim() else t,  # a lazily negated view
        lambda t: t.double(),
        lambda t: t.long(),
        lambda t: t[:-1].clone(),
        lambda t: t[None].clone(),
        lambda t: t + 1,
        lambda t: t.tolist(),
        lambda t: None,
    ],
)
def test_tensors_of_any_other_kind_are_refused(
    tmp_path: Path, file: Path, change: Callable[[torch.Tensor], object]
) -> None:
    content = content_of(file)
    for name in ("layers.1.router.weight", "layers.1.up_proj.weight"):
        tensors = content["tensors"] | {name: change(content["tensors"][name])}
        refused(
            saved(tmp_path / "x.pt", content | {"tensors": tensors}),
            "not laid out|should own|sha256|has dtype|asks for|its header asks",
        )


def test_nan_is_refused_even_with_the_right_sha256(tmp_path: Path, file: Path) -> None:
    from merge.tensors import tensor_digest

    content, name = content_of(file), "layers.1.up_proj.weight"
    for value in (torch.nan, torch.inf, -torch.inf):
        bad = content["tensors"][name].clone()
        bad[3, 5] = value
        header = json.loads(content["header"])
        header["tensors"][name]["sha256"] = tensor_digest(bad)
        new = content | {"tensors": content["tensors"] | {name: bad}, "header": json.dumps(header)}
        refused(saved(tmp_path / "x.pt", new), f"{name} holds NaN or infinite values")


def test_tensors_cannot_share_bytes(tmp_path: Path, file: Path, header: Header) -> None:
    """Otherwise a small file could announce, and a merge would write, a large model."""
    arch = replace(header.anchor.architecture, num_hidden_layers=500)
    shared = {shape: torch.zeros(shape) for shape in set(expert_tensors(arch).values())}
    tensors = {name: shared[shape].view(shape) for name, shape in expert_tensors(arch).items()}
    big = replace(header, anchor=replace(header.anchor, architecture=arch)).with_tensors(
        {name: TensorInfo("F32", tuple(tensor.shape), "a" * 64) for name, tensor in tensors.items()}
    )
    content = content_of(file) | {"header": big.to_json(), "tensors": tensors}
    refused(saved(tmp_path / "x.pt", content), "tensors that share their bytes")


def test_zips_that_torch_does_not_make_are_refused(tmp_path: Path, file: Path) -> None:
    path = tmp_path / "x.pt"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("a.txt", "a")
    refused(path, "a zip with 0 entries named data.pkl")
    with zipfile.ZipFile(path, "w"):
        pass
    refused(path, "neither a PyTorch zip")
    refused(rewrite_zip(file, path, compression=zipfile.ZIP_DEFLATED), "a compressed zip")
    refused(rewrite_zip(file, path, extra={"b/data.pkl": b""}), "2 entries named data.pkl")
    with pytest.warns(UserWarning, match="Duplicate name"):
        rewrite_zip(file, path, extra={"archive/data/0": b"x"})
    refused(path, "a repeated entry")
    refused(rewrite_zip(file, path, extra={"archive/note": bytes(100_000)}), "bytes, expected")
    with zipfile.ZipFile(rewrite_zip(file, path), "a") as archive:
        archive.comment = b"private"
    refused(path, "something after its end")
    path.write_bytes(file.read_bytes() + bytes(100))
    refused(path, "something after its end")
    refused(
        rewrite_zip(file, path, lambda n, d: d + bytes(40_000_000) if n == "data.pkl" else d), "MB beside the tensors"
    )
    refused(
        rewrite_zip(file, path, lambda n, d: d[:-4] if n == "data/3" else d),
        "should own exactly its 128",
    )


def test_a_bomb_of_zeros_is_not_unpacked(tmp_path: Path, file: Path) -> None:
    huge = lambda name, data: bytes(200_000_000) if name == "data.pkl" else data  # noqa: E731
    path = rewrite_zip(file, tmp_path / "x.pt", huge, compression=zipfile.ZIP_DEFLATED)
    assert path.stat().st_size < 1_000_000
    refused(path, "a compressed zip")


def test_an_empty_archive_and_an_encrypted_entry(tmp_path: Path, file: Path) -> None:
    data = bytearray(file.read_bytes())
    at = data.index(b"PK\x01\x02")
    data[at + 8] |= 1
    (tmp_path / "x.pt").write_bytes(data)
    refused(tmp_path / "x.pt", "damaged or cut-off zip")


def safetensors_file(path: Path, header: dict[str, Any], data: bytes) -> Path:
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + data)
    return path


def test_hostile_safetensors_are_refused(tmp_path: Path, header: Header, values: dict[str, torch.Tensor]) -> None:
    good = tmp_path / "math.safetensors"
    write_expert(good, header, values)
    raw = good.read_bytes()
    length = struct.unpack("<Q", raw[:8])[0]
    head, data = json.loads(raw[8 : 8 + length]), raw[8 + length :]
    path = tmp_path / "x.safetensors"
    meta = head["__metadata__"]
    open_expert(safetensors_file(path, head, data))  # the way of writing is sound
    for version in ("2", "01", "1.0", "\u00b9", "", "9" * 5000):
        refused(safetensors_file(path, head | {"__metadata__": meta | {"version": version}}, data), "file version")
    refused(safetensors_file(path, head | {"__metadata__": meta | {"format": "pt"}}, data), "not an expert file")
    refused(safetensors_file(path, head | {"__metadata__": {}}, data), "not an expert file")
    refused(safetensors_file(path, {k: v for k, v in head.items() if k != "__metadata__"}, data), "not an expert file")
    refused(
        safetensors_file(path, head | {"__metadata__": meta | {"note": "x"}}, data), "not part of version 1: .'note'"
    )
    without = {k: v for k, v in meta.items() if k != "header"}
    refused(
        safetensors_file(path, head | {"__metadata__": without}, data), "missing or not part of version 1: .'header'"
    )
    refused(safetensors_file(path, head, data + b"x"), "neither")
    entry = head["layers.0.router.weight"]
    refused(safetensors_file(path, head | {"layers.0.router.weight": entry | {"dtype": "I32"}}, data), "has dtype I32")
    refused(safetensors_file(path, head | {"layers.0.router.weight": entry | {"shape": [8, 4]}}, data), r"is \(8, 4\)")
    renamed = {("x" if key == "layers.0.router.weight" else key): value for key, value in head.items()}
    refused(safetensors_file(path, renamed, data), "Missing: .'layers.0.router.weight'.. Not expected: .'x'")
    path.write_bytes(struct.pack("<Q", 2**62) + b"{}")
    refused(path, "neither")


def test_a_table_that_does_not_fit_is_refused(tmp_path: Path, file: Path) -> None:
    content, path = content_of(file), tmp_path / "x.pt"
    header = json.loads(content["header"])
    name = "layers.1.up_proj.weight"
    entry = header["tensors"][name]

    def with_table(table: dict[str, Any]) -> Path:
        return saved(path, content | {"header": json.dumps(header | {"tensors": table})})

    rest = {key: value for key, value in header["tensors"].items() if key != name}
    refused(with_table(rest), "list of tensors does not fit")
    refused(with_table(header["tensors"] | {"layers.9.up_proj.weight": entry}), "list of tensors does not fit")
    refused(with_table(rest | {name: entry | {"shape": [32, 48]}}), "list of tensors does not fit")
    refused(with_table(rest | {name: entry | {"dtype": "BF16"}}), f"{name} has dtype F32, its header says BF16")
    refused(with_table(rest | {name: entry | {"sha256": "0" * 64}}), f"{name} does not match the sha256")
    other = header["anchor"] | {"architecture": header["anchor"]["architecture"] | {"intermediate_size": 64}}
    refused(saved(path, content | {"header": json.dumps(header | {"anchor": other})}), r"is \(48, 32\), .* \(64, 32\)")


def test_a_padded_header_is_refused(tmp_path: Path, file: Path) -> None:
    content = content_of(file)
    path = saved(tmp_path / "x.pt", content | {"header": content["header"] + " " * 200_000})
    refused(path, "bytes, expected")


def test_pickles_of_later_protocols_are_refused(tmp_path: Path, file: Path) -> None:
    torch.save(content_of(file), tmp_path / "x.pt", pickle_protocol=4)
    refused(tmp_path / "x.pt", "not laid out like an expert file")
