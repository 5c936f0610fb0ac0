"""Model folders: lazy reads of safetensors shards, a digest that does not depend on sharding, and a streaming writer.

Reading maps files and touches a tensor's bytes only when it is asked for; writing puts the header first and then one
tensor after another, so the memory of a merge is one tensor, whatever the size of the model.
"""

from __future__ import annotations

import hashlib
import json
import struct
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from merge.errors import CheckpointError
from merge.flexolmo import Shapes

DTYPES = {
    "F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16,
    "I64": torch.int64, "I32": torch.int32, "I16": torch.int16, "I8": torch.int8, "U8": torch.uint8, "BOOL": torch.bool,
}  # fmt: skip
DTYPE_NAMES = {dtype: name for name, dtype in DTYPES.items()}
MAX_JSON = 64 << 20
TOKENIZER_FILES = (
    "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "vocab.json",
    "merges.txt", "chat_template.jinja", "generation_config.json",
)  # fmt: skip


@dataclass(frozen=True)
class TensorSpec:
    """A tensor to write: its name on disk, dtype, shape, and the function that brings its values in its turn."""

    name: str
    dtype: torch.dtype
    shape: tuple[int, ...]
    load: Callable[[], torch.Tensor]

    @property
    def nbytes(self) -> int:
        return self.dtype.itemsize * torch.Size(self.shape).numel()


class Checkpoint:
    """A Hugging Face model folder, read lazily.

    Raises `CheckpointError` when the folder is missing, has no `config.json` or no safetensors weights, when a shard is
    damaged, when two shards hold the same name, or a tensor has a dtype that is not in `DTYPES` (quantised weights).
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        if not folder.is_dir():
            raise CheckpointError(f"{folder}: no such folder.")
        self.config: dict[str, Any] = read_json(folder / "config.json")
        self._files = {path: _open(path) for path in self._weight_files()}
        self._where: dict[str, Path] = {}
        for path, file in self._files.items():
            for name in file.keys():  # noqa: SIM118 - a safetensors handle is no mapping
                if name in self._where:
                    raise CheckpointError(
                        f"{path}: {name[:80]!r} is also in {self._where[name].name}, and a tensor has one place only. "
                        "Are shards of two models mixed here?"
                    )
                if (stored := file.get_slice(name).get_dtype()) not in DTYPES:
                    raise CheckpointError(
                        f"{path}: {name[:80]!r} has dtype {stored}, expected one of {', '.join(DTYPES)}."
                    )
                self._where[name] = path

    @property
    def names(self) -> set[str]:
        return set(self._where)

    def shape(self, name: str) -> tuple[int, ...]:
        return tuple(self._slice(name).get_shape())

    def dtype(self, name: str) -> torch.dtype:
        return DTYPES[self._slice(name).get_dtype()]

    def tensor(self, name: str) -> torch.Tensor:
        """The values of one tensor, read now."""
        tensor: torch.Tensor = self._files[self._where[name]].get_tensor(name)
        return tensor

    def require(self, shapes: Shapes, kind: str) -> None:
        """Raises `CheckpointError` unless the folder holds exactly these names and shapes."""
        missing, extra = sorted(shapes.keys() - self.names), sorted(self.names - shapes.keys())
        if missing or extra:
            raise CheckpointError(
                f"{self.folder}: not {kind}. Missing: {_listed(missing)}. Not expected: {_listed(extra)}."
            )
        for name, shape in shapes.items():
            if self.shape(name) != shape:
                raise CheckpointError(
                    f"{self.folder}: {name} is {self.shape(name)}, its config.json asks for {shape}. "
                    "The folder is damaged or config.json was edited."
                )

    def digest(self, advance: Callable[[float], None] = lambda _amount: None) -> str:
        """A sha256 over sorted (name, dtype, shape, bytes), the same however the tensors are spread over files.

        `advance` is told the number of bytes after each tensor.
        """

        def lines() -> Iterator[tuple[str, str]]:
            for name in sorted(self.names):
                yield name, tensor_digest(self.tensor(name))
                advance(self._nbytes(name))

        return combined_digest(lines())

    @property
    def nbytes(self) -> int:
        """Bytes of all tensors."""
        return sum(self._nbytes(name) for name in self.names)

    def _nbytes(self, name: str) -> int:
        return torch.Size(self.shape(name)).numel() * self.dtype(name).itemsize

    def _slice(self, name: str) -> Any:
        return self._files[self._where[name]].get_slice(name)

    def _weight_files(self) -> list[Path]:
        index = self.folder / "model.safetensors.index.json"
        if index.exists():
            weight_map = read_json(index).get("weight_map")
            if not isinstance(weight_map, dict) or not all(isinstance(file, str) for file in weight_map.values()):
                raise CheckpointError(f"{index}: no weight_map with file names in it.")
            files = sorted(set(weight_map.values()))
            if foreign := [file for file in files if Path(file).name != file]:
                raise CheckpointError(
                    f"{index}: the shard {foreign[0][:80]!r} is not a plain file name; shards lie beside the index."
                )
            return [self.folder / file for file in files]
        if (single := self.folder / "model.safetensors").exists():
            return [single]
        others = sorted(path.name for path in self.folder.glob("*.bin"))
        found = f"found {_listed(others)}; convert it to safetensors first" if others else "is it a model folder?"
        raise CheckpointError(f"{self.folder}: no model.safetensors and no model.safetensors.index.json ({found}).")


def tensor_digest(tensor: torch.Tensor) -> str:
    """A sha256 over dtype, shape and bytes of one tensor, as hex."""
    digest = hashlib.sha256(f"{DTYPE_NAMES[tensor.dtype]} {list(tensor.shape)}\n".encode())
    digest.update(tensor_bytes(tensor))
    return digest.hexdigest()


def combined_digest(digests: Iterable[tuple[str, str]]) -> str:
    """One sha256 over (name, digest) pairs, sorted by name."""
    return hashlib.sha256("".join(f"{name} {digest}\n" for name, digest in sorted(digests)).encode()).hexdigest()


def tensor_bytes(tensor: torch.Tensor) -> memoryview:
    """The bytes of a tensor in C order, without a copy where it is contiguous."""
    tensor = tensor.detach().contiguous()
    flat = tensor.as_strided((tensor.numel(),), (1,)).view(torch.uint8)  # reshape(-1) may keep an odd stride of size 1
    view: memoryview = flat.numpy().data
    return view


def write_tensors(
    folder: Path, specs: list[TensorSpec], max_shard_size: int, advance: Callable[[float], None]
) -> dict[str, Path]:
    """Streams tensors into `model.safetensors`, or into numbered shards with an index when they pass `max_shard_size`.

    Args:
        folder: an existing folder.
        specs: the tensors in the order in which they are written; values are loaded one at a time.
        max_shard_size: bytes of tensors per file; a larger tensor gets a file of its own.
        advance: told the number of bytes after each tensor.

    Returns:
        name -> file.
    """
    shards: list[list[TensorSpec]] = [[]]
    for spec in specs:
        if shards[-1] and sum(other.nbytes for other in shards[-1]) + spec.nbytes > max_shard_size:
            shards.append([])
        shards[-1].append(spec)
    where: dict[str, Path] = {}
    for number, shard in enumerate(shards, 1):
        single = len(shards) == 1
        path = folder / ("model.safetensors" if single else f"model-{number:05d}-of-{len(shards):05d}.safetensors")
        write_safetensors(path, shard, {"format": "pt"}, advance)
        where |= {spec.name: path for spec in shard}
    if len(shards) > 1:
        index = {
            "metadata": {"total_size": sum(spec.nbytes for spec in specs)},
            "weight_map": {name: path.name for name, path in where.items()},
        }
        write_json(folder / "model.safetensors.index.json", index)
    return where


def write_safetensors(
    path: Path,
    specs: list[TensorSpec],
    metadata: dict[str, str],
    advance: Callable[[float], None] = lambda _amount: None,
) -> None:
    """One safetensors file: 8 bytes of header length, the header padded to 8 bytes, then the tensors back to back.

    The library's own writer wants all tensors in memory at once, and reports a full disk as something else.
    """
    header: dict[str, Any] = {"__metadata__": metadata}
    start = 0
    for spec in specs:
        header[spec.name] = {
            "dtype": DTYPE_NAMES[spec.dtype],
            "shape": list(spec.shape),
            "data_offsets": [start, start + spec.nbytes],
        }
        start += spec.nbytes
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for spec in specs:
            tensor = spec.load()
            assert (tensor.dtype, tuple(tensor.shape)) == (spec.dtype, spec.shape), (
                f"{spec.name}: planned {spec.dtype} {spec.shape}, loaded {tensor.dtype} {tuple(tensor.shape)}"
            )
            file.write(tensor_bytes(tensor))
            advance(spec.nbytes)
            del tensor  # before the next one is loaded


def save_tensors(path: Path, tensors: Mapping[str, torch.Tensor], metadata: dict[str, str]) -> None:
    """Writes tensors that are in memory as one safetensors file, in the order given."""
    specs = [
        TensorSpec(name, tensor.dtype, tuple(tensor.shape), partial(tensors.__getitem__, name))
        for name, tensor in tensors.items()
    ]
    write_safetensors(path, specs, metadata)


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object from a file of at most 64 MB; raises `CheckpointError` for anything else."""
    try:
        if path.stat().st_size > MAX_JSON:
            raise CheckpointError(f"{path}: {path.stat().st_size / 1e6:.0f} MB of JSON, expected at most 64 MB.")
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise CheckpointError(f"{path}: no such file. Is {path.parent} a model folder?") from None
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read ({error.strerror}).") from None
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{path}: not readable as JSON ({error}).") from None
    if not isinstance(value, dict):
        raise CheckpointError(f"{path}: expected a JSON object, got {type(value).__name__}.")
    return value


def write_json(path: Path, value: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def _open(path: Path) -> Any:
    if not path.exists():
        raise CheckpointError(f"{path}: the index names this shard, but it is missing. Copy or download it again.")
    try:
        return safe_open(path, framework="pt")
    except (SafetensorError, OSError, ValueError) as error:
        raise CheckpointError(f"{path}: not a whole safetensors file ({error}). Copy or download it again.") from None


def _listed(names: list[str], limit: int = 4) -> str:
    return (", ".join(names[:limit]) + (f" and {len(names) - limit} more" if len(names) > limit else "")) or "none"
