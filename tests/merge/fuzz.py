"""Hostile expert files without end: damaged bytes, and files whose parts fit together except for one thing.

`test_fuzz.py` tries some hundreds in every run of the tests, `benchmarks/fuzzing.py` goes on for minutes.
"""

from __future__ import annotations

import json
import math
import pickletools
import re
import struct
import warnings
import zipfile
from collections.abc import Callable
from dataclasses import dataclass, replace
from hashlib import sha256
from io import BytesIO
from pathlib import Path
from typing import Any

import torch
from hypothesis import strategies as st

from flexo.errors import ExpertFileError
from merge.formats.architecture import expert_tensors
from merge.formats.expert_file import ExpertFile, open_expert, write_expert
from merge.formats.expert_header import Header
from merge.tensor_io.stored_tensor import tensor_title

Draw = Callable[[st.SearchStrategy[Any]], Any]

SIZES = {"vocab_size": 9, "hidden_size": 8, "intermediate_size": 3, "num_hidden_layers": 1}
NUMBERS = (0, 1, 2, 7, 8, 127, 128, 255, 256, 65535, 65536, 2**31 - 1, 2**31, 2**32 - 1, 2**63 - 1, 2**63, 2**64 - 1)
TEXTS = ("", "a", "../../x", "/etc/passwd", "a\0b", "\x1b[2J", "\u202e", "\ud800", "F32", "BF16", "F8_E4M3", "x" * 3000)
# what a pickle could go on with: code, other globals, recalls, frames, endless nesting, and opcodes of other protocols
OPCODES = (
    b"cos\nsystem\n", b"cbuiltins\neval\n", b"ctorch\nload\n", b"ctorch._utils\n_rebuild_tensor_v2\n",
    b"ctorch\nFloatStorage\n", b"ctorch\nByteStorage\n", b"ccollections\nOrderedDict\n", b"R", b"Q", b"(", b")",
    b"}", b"]", b"t", b"u", b"s", b"0", b"1", b"2", b"\x85", b"\x86", b"\x87", b"\x88", b"\x89", b"N", b"K\x00",
    b"M\xff\xff", b"J\xff\xff\xff\x7f", b"\x8a\x08\xff\xff\xff\xff\xff\xff\xff\x7f", b"\x8a\x01\xff",
    b"X\x01\x00\x00\x00a", b"h\x00", b"h\x07", b"h\xff", b"q\x00", b"r\x00\x00\x00\x7f", b"j\x00\x00\x00\x00",
    b"\x93", b"\x94", b"\x80\x05", b"b", b"\x81", b"i", b"o", b".", b"(" * 5000, b"\x85" * 5000, b"}" * 5000,
)  # fmt: skip


@dataclass(frozen=True)
class Sample:
    """A valid expert file, and what is needed to take it apart."""

    suffix: str
    data: bytes

    @property
    def header(self) -> str:
        """The header's JSON."""
        if self.suffix == ".safetensors":
            return str(_split(self.data)[0]["__metadata__"]["header"])
        text = next(
            a for op, a, _ in pickletools.genops(_entries(self.data)["archive/data.pkl"]) if str(a).startswith("{")
        )
        return str(text)

    def with_header(self, text: str) -> bytes:
        """The file with another header."""
        if self.suffix == ".safetensors":
            table, values = _split(self.data)
            table["__metadata__"]["header"] = text
            return _joined(json.dumps(table), values)
        entries = _entries(self.data)
        old, new = (t.encode("utf-8", "surrogatepass") for t in (self.header, text))
        program = entries["archive/data.pkl"].replace(
            struct.pack("<I", len(old)) + old, struct.pack("<I", len(new)) + new
        )
        return _zip(list((entries | {"archive/data.pkl": program}).items()))


def samples(folder: Path, header: Header) -> list[Sample]:
    """Tiny valid files of both containers, about 4 kB each."""
    arch = replace(header.anchor.architecture, **SIZES)
    header = replace(header, anchor=replace(header.anchor, architecture=arch))
    shapes = expert_tensors(arch, bias=True)
    counted = torch.linspace(-1, 1, 24)  # as many as the largest has
    values = {name: counted[: math.prod(shape)].reshape(shape) for name, shape in shapes.items()}
    found = []
    for suffix in (".pt", ".safetensors"):
        path = folder / f"x{suffix}"
        write_expert(path, header, values)
        found.append(Sample(suffix, path.read_bytes()))
    return found


# --- what is done to them


def damaged(data: bytes) -> st.SearchStrategy[bytes]:
    """One to four changes of bytes anywhere, or near what the container's readers go by."""
    marks = [0, *(m.start() for m in re.finditer(rb"PK\x01\x02|PK\x05\x06|PK\x03\x04|PK\x06\x06|data\.pkl|\{\"", data))]
    place = st.integers(0, len(data) - 1) | st.sampled_from(marks).flatmap(
        lambda m: st.integers(m, min(m + 60, len(data) - 1))
    )
    number = st.tuples(st.sampled_from(NUMBERS), st.sampled_from([1, 2, 4, 8])).map(
        lambda pair: (pair[0] & ((1 << 8 * pair[1]) - 1)).to_bytes(pair[1], "little")
    )
    change = st.tuples(
        st.sampled_from(["put", "put", "put", "insert", "delete", "cut", "repeat", "append"]),
        place,
        st.integers(1, 64),
        number | st.binary(min_size=1, max_size=8),
    )
    return st.lists(change, min_size=1, max_size=4).map(lambda changes: _changed(data, changes))


def _changed(data: bytes, changes: list[tuple[str, int, int, bytes]]) -> bytes:
    for kind, at, length, new in changes:
        match kind:
            case "put":
                data = data[:at] + new + data[at + len(new) :]
            case "insert":
                data = data[:at] + new + data[at:]
            case "delete":
                data = data[:at] + data[at + length :]
            case "cut":
                data = data[:at]
            case "repeat":
                data = data[:at] + data[at : at + length] * 2 + data[at + length :]
            case _:
                data += new
    return data


hostile_values: st.SearchStrategy[Any] = st.recursive(
    st.none() | st.booleans() | st.sampled_from(NUMBERS) | st.integers() | st.floats() | st.sampled_from(TEXTS),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(TEXTS), inner, max_size=3),
    max_leaves=5,
)


@st.composite
def json_changed(draw: Draw, text: str) -> str:
    """JSON with one to three values replaced, removed, added or named twice, or with another text around it."""
    value = json.loads(text)
    for _ in range(draw(st.integers(1, 3))):
        place, name = value, None
        while isinstance(place, dict | list) and place and (name is None or draw(st.integers(0, 3))):
            parent, name = place, draw(st.sampled_from(list(place) if isinstance(place, dict) else range(len(place))))
            place = parent[name]
        if name is None:
            continue
        match draw(st.sampled_from(["replace", "replace", "number", "remove", "add"])):
            case "replace":
                parent[name] = draw(hostile_values)
            case "number":
                parent[name] = draw(st.sampled_from(NUMBERS))
            case "remove":
                del parent[name]
            case _ if isinstance(parent, dict):
                parent[draw(st.sampled_from(TEXTS))] = place
            case _:
                parent.append(place)
    changed = json.dumps(value)
    match draw(st.integers(0, 11)):
        case 0:
            return changed.replace("{", '{"domain":"a",', 1)
        case 1:
            return "[" * draw(st.sampled_from([10, 1000, 100_000])) + changed
        case 2:
            return changed + draw(st.sampled_from([" ", "\n", "x", "\0", "{}"])) * draw(st.integers(1, 5000))
    return changed


@st.composite
def program_changed(draw: Draw, data: bytes) -> bytes:
    """A zip whose pickle has some instructions removed, repeated, exchanged or replaced by hostile ones."""
    entries = _entries(data)
    program = entries["archive/data.pkl"]
    starts = [at for _, _, at in pickletools.genops(program)]
    steps = [program[a:b] for a, b in zip(starts, [*starts[1:], len(program)], strict=True)]
    for _ in range(draw(st.integers(1, 3))):
        at, other = (draw(st.integers(0, len(steps) - 1)) for _ in range(2))
        match draw(st.sampled_from(["remove", "repeat", "swap", "copy", "hostile", "hostile", "insert"])):
            case "remove" if len(steps) > 1:
                del steps[at]
            case "repeat":
                steps.insert(at, steps[at])
            case "swap":
                steps[at], steps[other] = steps[other], steps[at]
            case "copy":
                steps[at] = steps[other]
            case "hostile":
                steps[at] = draw(st.sampled_from(OPCODES))
            case _:
                steps.insert(at, draw(st.sampled_from(OPCODES)))
    return _zip(list((entries | {"archive/data.pkl": b"".join(steps)}).items()))


@st.composite
def zip_changed(draw: Draw, data: bytes) -> bytes:
    """A zip with entries renamed, repeated, missing, compressed, resized, in another order, or of other content."""
    entries = list(_entries(data).items())
    names = [name for name, _ in entries]
    for _ in range(draw(st.integers(1, 3))):
        at = draw(st.integers(0, len(entries) - 1))
        name, content = entries[at]
        match draw(st.integers(0, 6)):
            case 0:
                entries[at] = (
                    draw(
                        st.sampled_from([*names, "archive/", "../x", "/x", "archive/data/00", "", "\u202e", "x" * 999])
                    ),
                    content,
                )
            case 1:
                entries.append((name, draw(st.binary(max_size=64))))
            case 2 if len(entries) > 1:
                del entries[at]
            case 3:
                entries[at] = name, content[: draw(st.integers(0, len(content)))]
            case 4:
                entries[at] = name, content + bytes(draw(st.integers(1, 5000)))
            case 5:
                other = draw(st.integers(0, len(entries) - 1))
                entries[at], entries[other] = entries[other], entries[at]
            case _:
                entries[at] = name, draw(st.sampled_from([c for _, c in entries]))
    kind = draw(st.sampled_from([zipfile.ZIP_STORED] * 4 + [zipfile.ZIP_DEFLATED]))
    comment = draw(st.sampled_from([b""] * 4 + [b"x", b"PK\x05\x06" + bytes(18)]))
    return _zip(entries, kind, comment)


@st.composite
def table_changed(draw: Draw, data: bytes) -> bytes:
    """A safetensors file with another table, or another length before it."""
    table, values = _split(data)
    text = draw(json_changed(json.dumps(table)))
    length = draw(st.none() | st.none() | st.sampled_from(NUMBERS))
    return _joined(text, values + bytes(draw(st.sampled_from([0, 0, 0, 1, 100]))), length)


@st.composite
def values_changed(draw: Draw, sample: Sample) -> bytes:
    """A file with other values and the right sha256 for them: NaN, infinities, subnormal numbers, anything."""
    header = json.loads(sample.header)
    name = draw(st.sampled_from(sorted(header["tensors"])))
    info = header["tensors"][name]
    pattern = st.sampled_from(
        [0, 1, 0x7F800000, 0xFF800000, 0x7FC00000, 0x7F800001, 0x80000000, 0x007FFFFF, 0x7F7FFFFF]
    )
    count = math.prod(info["shape"])
    words = draw(st.lists(pattern | st.integers(0, 2**32 - 1), min_size=count, max_size=count))
    new = struct.pack(f"<{count}I", *words)
    info["sha256"] = sha256(tensor_title(info["dtype"], info["shape"]) + new).hexdigest()
    fixed = sample.with_header(json.dumps(header))
    if sample.suffix == ".safetensors":
        table, values = _split(fixed)
        begin, end = table[name]["data_offsets"]
        return _joined(json.dumps(table), values[:begin] + new + values[end:])
    entries = _entries(fixed)
    entry = f"archive/data/{sorted(header['tensors']).index(name)}"
    assert len(entries[entry]) == len(new), f"{name} is not in {entry}"
    return _zip(list((entries | {entry: new}).items()))


def hostile(sample: Sample) -> dict[str, st.SearchStrategy[bytes]]:
    """All kinds of changes, by name, for one container."""
    kinds = {
        "bytes": damaged(sample.data),
        "header": json_changed(sample.header).map(sample.with_header),
        "values": values_changed(sample),
    }
    if sample.suffix == ".safetensors":
        return kinds | {"table": table_changed(sample.data)}
    return kinds | {"program": program_changed(sample.data), "zip": zip_changed(sample.data)}


# --- what must come of it


def read(path: Path) -> dict[str, bytes] | str:
    """The tensors of a file that is read, or the message that refuses it; anything else is a fault."""
    try:
        expert = open_expert(path)
        return {name: bytes(expert.read(name)) for name in expert.tensors}
    except ExpertFileError as refusal:
        message = str(refusal)
        assert message.startswith(f"{path}: ") and message.isprintable() and len(message) < 800, message
        return message.removeprefix(f"{path}: ")


def read_by_others(expert: ExpertFile) -> dict[str, bytes] | None:
    """The tensors as PyTorch or safetensors reads them, None where they refuse the file: we may not read another."""
    from safetensors.torch import load_file

    from merge.tensor_io.torch_tensors import tensor_bytes

    try:
        if expert.path.suffix == ".safetensors":
            found = load_file(expert.path)
        else:
            found = torch.load(expert.path, weights_only=True)["tensors"]
    except Exception:  # theirs to name
        return None
    return {name: bytes(tensor_bytes(tensor)) for name, tensor in found.items()}


def kind_of(message: str) -> str:
    """A refusal without the particulars of the file, for counting."""
    message = re.sub(r"'[^']*'?|\"[^\"]*\"|\[[^\]]*\]?|\([^)]*\)", "_", message)
    return re.sub(r"[\w.]*\d[\w.]*|header\.[\w.]+|layers\.[\w.]+", "_", message)[:60]


def _entries(data: bytes) -> dict[str, bytes]:
    with zipfile.ZipFile(BytesIO(data)) as archive:
        return {entry.filename: archive.read(entry) for entry in archive.infolist()}


def _zip(entries: list[tuple[str, bytes]], kind: int = zipfile.ZIP_STORED, comment: bytes = b"") -> bytes:
    out = BytesIO()
    with warnings.catch_warnings(), zipfile.ZipFile(out, "w", kind) as archive:
        warnings.simplefilter("ignore")  # a repeated name is what we want
        for name, content in entries:
            archive.writestr(zipfile.ZipInfo(name), content, kind)
        archive.comment = comment
    return out.getvalue()


def _split(data: bytes) -> tuple[dict[str, Any], bytes]:
    length = int.from_bytes(data[:8], "little")
    return json.loads(data[8 : 8 + length]), data[8 + length :]


def _joined(text: str, values: bytes, length: int | None = None) -> bytes:
    raw = text.encode("utf-8", "surrogatepass")
    return ((len(raw) if length is None else length) & (2**64 - 1)).to_bytes(8, "little") + raw + values
