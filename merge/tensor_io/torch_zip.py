"""Reads the zip that `torch.save` makes of an expert, without PyTorch and without unpickling anything.

A pickle is a program. The only programs accepted are those that build `{str: str | int | {str: dense tensor}}`,
recognised instruction by instruction before the first is followed; `pickle_reader` then follows them.
"""

from __future__ import annotations

import os
import pickletools
import re
import zipfile
from itertools import islice
from pathlib import Path
from typing import Any

from flexo.errors import ExpertFileError
from merge.tensor_io.json_file import MAX_HEADER
from merge.tensor_io.pickle_reader import Tensor, build
from merge.tensor_io.stored_tensor import StoredTensor

MAX_DIRECTORY = 1 << 20  # bytes of the zip's list of entries, about 70 for each tensor
MAX_PICKLE = 4 * MAX_HEADER + (4 << 20)  # the header in UTF-8, and about 300 bytes a tensor

# What torch.save writes for {str: str | int | {str: dense tensor}}, one letter for each pickle instruction: s text,
# i whole number, f False, g global, m recalled from the memo. It leaves no room for code, nor for the bottomless
# nesting that overflows the stack of PyTorch's own unpickler.
INSTRUCTIONS = {
    "PROTO": "", "BINPUT": "", "LONG_BINPUT": "", "BINUNICODE": "s", "BININT": "i", "BININT1": "i", "BININT2": "i",
    "LONG1": "i", "NEWFALSE": "f", "GLOBAL": "g", "BINGET": "m", "LONG_BINGET": "m", "EMPTY_DICT": "{", "MARK": "(",
    "EMPTY_TUPLE": "0", "TUPLE1": "1", "TUPLE2": "2", "TUPLE": ")", "BINPERSID": "p", "REDUCE": "r", "SETITEM": "u",
    "SETITEMS": "U", "STOP": ".",
}  # fmt: skip
MAX_INSTRUCTIONS = 500_000  # about 40 a tensor
GLOBALS = re.compile(r"torch\._utils _rebuild_tensor_v2|torch \w+Storage|collections OrderedDict")


def _dict_of(value: str) -> str:
    return rf"\{{(?:[sm]{value}u|\((?:[sm]{value})*U)*"


_SHAPE = "(?:i1|ii2)"
_TENSOR = rf"[gm]\(\([sm][gm][sm][sm]i\)pi{_SHAPE}{_SHAPE}f[gm]0r\)r"
PICKLE = re.compile(_dict_of(rf"(?:[sm]|i|{_dict_of(_TENSOR)})") + r"\.")


def read_zip(path: Path) -> dict[str, Any]:
    """The dictionary in the file, tensors as places in it; refuses what torch.save does not make of an expert."""
    try:
        _check_end(path)
        with zipfile.ZipFile(path) as archive:
            entries = archive.infolist()
            pickles = [entry for entry in entries if entry.filename.endswith("/data.pkl")]
            if len(pickles) != 1:
                raise ExpertFileError(
                    f"{path}: a zip with {len(pickles)} entries named data.pkl, torch.save makes one. Expert files are "
                    "written by train_expert.py."
                )
            if len({entry.filename for entry in entries}) != len(entries):
                raise ExpertFileError(f"{path}: a zip with a repeated entry, which torch.save never makes.")
            unpacked = sum(entry.file_size for entry in entries)
            plain = all(not entry.compress_type and entry.compress_size == entry.file_size for entry in entries)
            if not plain or unpacked > path.stat().st_size:
                raise ExpertFileError(
                    f"{path}: a compressed zip, which torch.save never makes. Refused, as it may be a zip bomb."
                )
            if pickles[0].file_size > MAX_PICKLE:
                raise ExpertFileError(
                    f"{path}: {pickles[0].file_size / 1e6:.0f} MB beside the tensors, expected at most "
                    f"{MAX_PICKLE / 1e6:.0f} MB."
                )
            program = archive.read(pickles[0])
            files = {entry.filename: entry for entry in entries}
            folder = pickles[0].filename.removesuffix("data.pkl")
            order = files.get(folder + "byteorder")
            if order and (order.file_size != len(b"little") or archive.read(order) != b"little"):
                raise ExpertFileError(f"{path}: values in big-endian order. Expert files are little-endian.")
    except (zipfile.BadZipFile, EOFError, OSError, ValueError, RuntimeError) as error:
        raise ExpertFileError(
            f"{path}: a damaged or cut-off zip ({str(error)[:200]!r}). Copy the file again."
        ) from None
    _check_pickle(path, program)
    content = build(program)
    if content is None:
        raise _foreign(path)
    places = {
        name: _place(path, name, tensor, files.get(f"{folder}data/{tensor.storage}"))
        for value in content.values()
        if isinstance(value, dict)
        for name, tensor in value.items()
    }
    if len({stored.start for stored in places.values()}) != len(places):
        raise ExpertFileError(f"{path}: tensors that share their bytes; each needs its own.")
    return {
        name: {key: places[key] for key in value} if isinstance(value, dict) else value
        for name, value in content.items()
    }


def _place(path: Path, name: str, tensor: Tensor, entry: zipfile.ZipInfo | None) -> StoredTensor:
    """Where the values of a tensor lie, if they are all that its zip entry holds."""
    with path.open("rb") as file:
        file.seek(entry.header_offset if entry else 0)
        local = file.read(30)
    if entry is None or entry.flag_bits & 1 or len(local) < 30 or not local.startswith(b"PK\x03\x04"):
        raise ExpertFileError(f"{path}: {name[:80]!r} has no values in the zip. The file was damaged or altered.")
    if not tensor.plain or entry.file_size != tensor.nbytes:
        raise ExpertFileError(
            f"{path}: {name[:80]!r} is a view into {entry.file_size} bytes, it should own exactly its {tensor.nbytes}. "
            "Anything else in there must not be shipped with it."
        )
    start = entry.header_offset + 30 + int.from_bytes(local[26:28], "little") + int.from_bytes(local[28:30], "little")
    if start + tensor.nbytes > path.stat().st_size:
        raise ExpertFileError(f"{path}: {name[:80]!r} ends behind the end of the file. Copy the file again.")
    return StoredTensor(path, name, tensor.dtype, tensor.shape, start, tensor.nbytes)


def _check_end(path: Path) -> None:
    """Refuses a zip whose end record is not at its very end, where every reader finds it, or announces a bomb."""
    long = 56 + 20  # the record of a zip beyond 4 GB and its locator, before the end record
    with path.open("rb") as file:
        file.seek(-min(long + 22, path.stat().st_size), os.SEEK_END)
        tail = file.read()
    if not (tail[-22:].startswith(b"PK\x05\x06") and tail.endswith(b"\0\0")):
        raise ExpertFileError(
            f"{path}: a damaged or cut-off zip, or one with something after its end, which torch.save never makes. "
            "Copy the file again."
        )
    listed = int.from_bytes(tail[-10:-6], "little")
    if tail.startswith(b"PK\x06\x06") and tail[56:60] == b"PK\x06\x07":
        listed = int.from_bytes(tail[40:48], "little")
    if listed > MAX_DIRECTORY:
        raise ExpertFileError(
            f"{path}: a zip that lists its entries in {listed} bytes, expected at most {MAX_DIRECTORY}. Refused, as "
            "it may be a zip bomb."
        )


def _check_pickle(path: Path, program: bytes) -> None:
    letters = []
    try:
        for opcode, argument, _ in islice(pickletools.genops(program), MAX_INSTRUCTIONS):
            if opcode.name == "GLOBAL" and not GLOBALS.fullmatch(str(argument)):
                raise ExpertFileError(
                    f"{path}: asks for {str(argument)[:80]!r} to be loaded, which no expert file needs. "
                    "Nothing was run; do not open this file with anything else."
                )
            letters.append(INSTRUCTIONS.get(opcode.name, "?"))
    except ValueError:
        letters.append("?")
    if not PICKLE.fullmatch("".join(letters)):
        raise _foreign(path)


def _foreign(path: Path) -> ExpertFileError:
    return ExpertFileError(
        f"{path}: a PyTorch file, but not laid out like an expert file (a dictionary with format, version, header "
        "and dense CPU tensors). Nothing in it was run. Expert files are written by train_expert.py."
    )
