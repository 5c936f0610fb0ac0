"""The expert file, versions 1 and 2: what an owner ships, and the only thing that leaves their site.

A `torch.save` zip of `{"format": "flexo.expert", "version": 2, "header": <JSON string>, "tensors": {name: tensor}}`, or
a `.safetensors` file of the same tensors with the header in its metadata. `docs/expert-file.md` is the specification.
Files come from strangers: nothing in them is executed, tensors stay mapped on disk until they are asked for, and
whatever is not exactly as specified is refused.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flexo.atomic_files import CHUNK, new_file
from flexo.errors import ExpertFileError
from merge.formats.architecture import ROUTER_BIAS, expert_tensors, factor_names, stored_tensors
from merge.formats.expert_header import Header, TensorInfo, parse_header
from merge.tensor_io.stored_tensor import StoredTensor, read_table
from merge.tensor_io.torch_zip import read_zip

if TYPE_CHECKING:
    import torch

    from merge.tensor_io.float_formats import Values

FORMAT = "flexo.expert"
VERSIONS = (1, 2)  # read; written is the lowest that can hold what there is to say
WEIGHT_DTYPES = ("F32", "BF16", "F16")
FACTOR_DTYPE = "I16"
MAX_SUBNORMAL = 0.01  # of a tensor's values; trained ones have none


@dataclass(frozen=True)
class ExpertFile:
    """An opened expert file: its header, and where its tensors lie."""

    path: Path
    header: Header
    tensors: Mapping[str, StoredTensor]

    @property
    def domain(self) -> str:
        return self.header.domain

    @property
    def nbytes(self) -> int:
        """Bytes of all tensors in the file."""
        return sum(stored.nbytes for stored in self.tensors.values())

    @property
    def has_bias(self) -> bool:
        return "layers.0.router.bias" in self.header.tensors

    def read(self, name: str) -> bytearray:
        """The bytes of one tensor, checked: sha256, no NaN or infinity, few subnormal. Raises `ExpertFileError`."""
        from merge.tensor_io.value_checks import scanned

        return scanned(self.tensors[name])

    def verify(self, advance: Callable[[float], None] = lambda _amount: None) -> None:
        """Checks all tensors like `read`, in a small buffer; `advance` is told the bytes."""
        from merge.tensor_io.value_checks import Scan

        buffer = memoryview(bytearray(CHUNK))
        with self.path.open("rb") as file:
            for stored in self.tensors.values():
                scan = Scan(stored)
                for _, view in stored.chunks(file.fileno(), buffer):
                    scan.see(view)
                    advance(len(view))
                scan.end()

    def values(self, name: str) -> Values:
        """One tensor in float32 [n], checked like `read`."""
        from merge.tensor_io.float_formats import to_float32

        return to_float32(self.read(name), self.tensors[name].dtype)

    def tensor(self, name: str) -> torch.Tensor:
        """One tensor, checked like `read`."""
        from merge.tensor_io.torch_tensors import as_tensor

        return as_tensor(self.read(name), self.tensors[name])

    def formed(self, weight: str, public: StoredTensor, rows: int | None = None) -> bytearray:
        """The bytes of a weight, whether the file holds it whole or as factors, in the public weight's dtype.

        Args:
            weight: its name.
            public: the public weight, to which factors are added.
            rows: the first so many are enough, and are not checked; None: all, checked like `read`.

        Raises `ExpertFileError` if it is not what the header states.
        """
        if weight in self.tensors:
            return self.read(weight)
        from merge.tensor_io.factors import formed, is_scale
        from merge.tensor_io.value_checks import Scan

        names = factor_names(weight)
        left, right = (_whole_numbers(self.read(name), self.tensors[name].shape) for name in names[:2])
        scale = float(self.values(names[2])[0])
        if not is_scale(scale):
            raise ExpertFileError(f"{self.path}: {names[2]} is {scale:g}, expected a power of two.")
        if rows is not None:
            left = left[:rows]
        values = public.read()[: public.nbytes // public.shape[0] * len(left)]
        data, info = formed(values, public.dtype, left, right, scale), self.header.tensors[weight]
        if rows is None:
            scan = Scan(_stated(StoredTensor(self.path, weight, info.dtype, info.shape, 0, info.nbytes), info.sha256))
            scan.see(data)
            scan.end()
        return data


def write_expert(
    path: Path,
    header: Header,
    tensors: Mapping[str, torch.Tensor],
    replace: bool = False,
    before: Callable[[Header], None] = lambda _header: None,
    formed: Mapping[str, TensorInfo] | None = None,
) -> Header:
    """Writes an expert file, whole or not at all; a name ending in `.safetensors` chooses that container.

    Args:
        path: the file to make.
        header: everything but the tensor table, which is computed here.
        tensors: exactly the names and shapes of `expert_tensors`, or of `stored_tensors` with factors. A view, or what
            stands under two names, is copied, so that each has a storage of its own in the file; all else is not, for
            an expert may be half of what a machine holds.
        replace: whether a file that stands there may be overwritten.
        before: told the header as it will be written, before the file is there.
        formed: what the header states of weights that `tensors` hold as factors.

    Returns:
        The header as written.

    Raises:
        ExpertFileError: `open_expert` or a merge would refuse the file.
        InputError: the file cannot be written here.
    """
    import torch

    from merge.tensor_io.torch_tensors import dtype_name, save_tensors

    for name, tensor in tensors.items():
        _check_dtype(path, name, dtype_name(tensor), stated=dtype_name(tensor))
    owned = _with_storages(tensors)
    header = header.with_tensors(
        {name: _info(path, name, tensor) for name, tensor in owned.items()} | dict(formed or {})
    )
    text = header.to_json()
    parse_header(text, str(path), header.version)  # what we refuse to read we do not write
    _check_table(path, header, {name: tuple(tensor.shape) for name, tensor in owned.items()})
    before(header)
    with new_file(path, replace) as partial:
        if path.suffix == ".safetensors":
            save_tensors(partial, owned, {"format": FORMAT, "version": str(header.version), "header": text})
        else:
            with partial.open("wb") as file:  # a full disk is an OSError here, and a RuntimeError where torch opens it
                torch.save({"format": FORMAT, "version": header.version, "header": text, "tensors": owned}, file)
    return header


def _with_storages(tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The tensors on the CPU, each with a storage of its own and nothing else in it; copied only where it has none."""
    found: dict[str, torch.Tensor] = {}
    taken: set[int] = set()
    for name, given in sorted(tensors.items()):
        tensor = given.detach().cpu().contiguous()
        storage = tensor.untyped_storage()
        if storage.nbytes() != tensor.nbytes or storage.data_ptr() in taken:
            tensor = tensor.clone()
        taken.add(tensor.untyped_storage().data_ptr())
        found[name] = tensor
    return found


def open_expert(path: Path) -> ExpertFile:
    """Opens an expert file of either container and checks its structure; the values are checked as they are read.

    Raises `ExpertFileError` for anything that is not a whole file of a known version: wrong container, pickled code,
    damaged zip, malformed header, and tensors that are missing, surplus, of another shape or dtype than the header
    says, or views into a larger storage.
    """
    try:
        if not path.is_file():
            found = "a folder" if path.is_dir() else "no such file"
            raise ExpertFileError(f"{path}: {found}, expected an expert file (.pt or .safetensors).")
        if path.stat().st_size == 0:
            raise ExpertFileError(f"{path}: the file is empty, expected an expert file. Copy it again.")
        with path.open("rb") as file:
            magic = file.read(4)
    except OSError as error:
        raise ExpertFileError(f"{path}: cannot be read ({error.strerror}).") from None
    expert = _open_zip(path) if magic == b"PK\x03\x04" else _open_safetensors(path)
    _check_file_size(expert)
    return expert


def _open_zip(path: Path) -> ExpertFile:
    content = read_zip(path)
    header = _header(path, "PyTorch", content, {"format", "version", "header", "tensors"})
    if not isinstance(tensors := content["tensors"], dict):
        raise ExpertFileError(f"{path}: tensors is a {type(tensors).__name__}, expected a dictionary of plain tensors.")
    return _opened(path, header, tensors)


def _open_safetensors(path: Path) -> ExpertFile:
    try:
        tensors, metadata = read_table(path)
    except (OSError, ValueError) as error:
        raise ExpertFileError(
            f"{path}: neither a PyTorch zip nor a safetensors file, or cut short ({str(error)[:200]!r}). Expert files "
            "are written by train_expert.py; copy the file again if it came over a network."
        ) from None
    content: dict[str, Any] = dict(metadata)
    for version in VERSIONS:
        if content.get("version") == str(version):  # metadata holds text only
            content["version"] = version
    return _opened(path, _header(path, "safetensors", content, {"format", "version", "header"}), tensors)


def _opened(path: Path, header: Header, tensors: Mapping[str, StoredTensor]) -> ExpertFile:
    _check_table(path, header, {name: stored.shape for name, stored in tensors.items()})
    for name, stored in tensors.items():
        _check_dtype(path, name, stored.dtype, header.tensors[name].dtype)
    return ExpertFile(
        path,
        header,
        {name: _stated(stored, header.tensors[name].sha256) for name, stored in tensors.items()},
    )


def _header(path: Path, container: str, content: dict[str, Any], names: set[str]) -> Header:
    """The header of either container, where its other entries are as specified."""
    if content.get("format") != FORMAT:
        raise ExpertFileError(
            f"{path}: a {container} file, but not an expert file (no format {FORMAT!r} in it). Expert files are "
            "written by train_expert.py."
        )
    version = content.get("version")
    if type(version) is not int or version not in VERSIONS:
        raise ExpertFileError(
            f"{path}: expert file version {str(version)[:20]!r}, this flexo reads versions 1 and 2. "
            "Update flexo, or ask the owner for a file written by this version."
        )
    if wrong := [name[:80] for name in sorted(content.keys() ^ names)]:
        raise ExpertFileError(
            f"{path}: entries missing or not part of version {version}: {wrong[:4]}, expected exactly {sorted(names)}."
        )
    if not isinstance(text := content["header"], str):
        raise ExpertFileError(f"{path}: header is a {type(text).__name__}, expected JSON text.")
    return parse_header(text, str(path), version)


def _check_table(path: Path, header: Header, shapes: Mapping[str, tuple[int, ...]]) -> None:
    """The tensors, the header's table and the header's architecture agree, name by name and shape by shape."""
    arch, stated = header.anchor.architecture, {name: info.shape for name, info in header.tensors.items()}
    expected = stored_tensors(arch, shapes)
    missing, surplus = sorted(expected.keys() - shapes.keys()), sorted(shapes.keys() - expected.keys())
    if missing or surplus:
        raise ExpertFileError(
            f"{path}: not the tensors of an expert with {arch.num_hidden_layers} layers. "
            f"Missing: {missing[:4] or 'none'}. Not expected: {[name[:80] for name in surplus[:4]] or 'none'}."
        )
    for name, shape in expected.items():
        if shapes[name] != shape:
            raise ExpertFileError(f"{path}: {name} is {shapes[name]}, its header asks for {shape}.")
    if stated != expected | expert_tensors(arch, bias=ROUTER_BIAS.format(n=0) in shapes):
        raise ExpertFileError(f"{path}: the header's list of tensors does not fit the tensors in the file.")
    for name in stated.keys() - shapes.keys():
        _check_dtype(path, name, header.tensors[name].dtype, header.tensors[name].dtype)


def _check_dtype(path: Path, name: str, dtype: str, stated: str) -> None:
    allowed = (FACTOR_DTYPE,) if name.endswith((".left", ".right")) else WEIGHT_DTYPES
    if dtype not in allowed or dtype != stated:
        raise ExpertFileError(
            f"{path}: {name} has dtype {dtype}, its header says {stated}; allowed are {', '.join(allowed)}."
        )


def _whole_numbers(data: bytearray, shape: tuple[int, ...]) -> Values:
    import numpy as np

    return np.frombuffer(data, np.int16).reshape(shape)


def _info(path: Path, name: str, tensor: torch.Tensor) -> TensorInfo:
    """The table's entry of a tensor in memory; raises `ExpertFileError` for values that `read` would refuse."""
    from merge.tensor_io.torch_tensors import dtype_name, tensor_bytes
    from merge.tensor_io.value_checks import Scan

    dtype, shape = dtype_name(tensor), tuple(tensor.shape)
    scan = Scan(_stated(StoredTensor(path, name, dtype, shape, 0, tensor.nbytes), None))
    scan.see(tensor_bytes(tensor))
    return TensorInfo(dtype, shape, scan.end())


def _stated(stored: StoredTensor, sha256: str | None) -> StoredTensor:
    return stored.stated(sha256, ExpertFileError, MAX_SUBNORMAL)


def _check_file_size(expert: ExpertFile) -> None:
    """A file is its tensors, its header and little else: tensors cannot share bytes, and nothing large can hide."""
    size = expert.path.stat().st_size
    most = expert.nbytes + 4 * len(expert.header.to_json()) + 1024 * len(expert.header.tensors) + 4096
    if not expert.nbytes <= size <= most:
        raise ExpertFileError(
            f"{expert.path}: {size} bytes, expected {expert.nbytes} of tensors and at most {most - expert.nbytes} of "
            "header and container. Something is missing from the file, or something else is in it."
        )
