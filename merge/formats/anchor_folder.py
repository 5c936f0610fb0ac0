"""The public anchor: an OLMo-2 folder plus what all owners must share bit for bit, in its subfolder `flexo/`.

    anchor/config.json, model*.safetensors, tokenizer.json ...     a plain Hugging Face folder
    anchor/flexo/public_router.safetensors                         the public router row of every layer (below)
    anchor/flexo/public_moments.safetensors                        moments of the router input on public text (optional)
    anchor/flexo/public/{train,test}.jsonl.gz                      the public reference text that owners measure against
    anchor/flexo/anchor.json                                       digests, how the rows were made, bits of public text

`public_router.safetensors` holds per layer N `layers.N.router.weight` [D], the public row;
`layers.N.bias_direction` [D], the vector v with v.x = 1 on public text in the least-squares sense, into which a router
bias is folded; and `layers.N.bias_error` [1], the root mean square of v.x - 1. They lie in a subfolder because vLLM
loads every safetensors file of a model folder.

`public_moments.safetensors` holds per layer N `layers.N.mean` [D] float32, and the covariance as `layers.N.deviation`
[D] and `layers.N.correlation` [D (D - 1) / 2] (merge/tensor_io/covariance.py), L D^2 bytes in all. Anchors made before
2026-11-29 hold `layers.N.second_moment` [D, D] float32, E[x x^T], in their place, and are read as well.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flexo.atomic_files import new_file, sha256_file
from flexo.errors import ModelFolderError
from merge.formats.architecture import ROUTER_WEIGHT, Architecture, Shapes, anchor_tensors, architecture_of
from merge.formats.model_folder import ModelFolder
from merge.model_files.kept_files import kept_files
from merge.model_files.weight_files import open_table
from merge.tensor_io.json_file import read_json, write_json
from merge.tensor_io.stored_tensor import DTYPES, StoredTensor, combined_digest

if TYPE_CHECKING:
    import torch

    from merge.formats.expert_file import ExpertFile
    from merge.tensor_io.float_formats import Values

SHARED = "flexo"
ROUTER = "public_router.safetensors"
MOMENTS = "public_moments.safetensors"
REFERENCE = "public"
README = "README.md"  # the coordinator's own words
BIAS_DIRECTION = "layers.{n}.bias_direction"
BIAS_ERROR = "layers.{n}.bias_error"
PUBLIC_TEXT, BITS_PER_BYTE = "public_text", "bits_per_byte"  # in `anchor.json`: of held-out public text


@dataclass
class Anchor:
    """An opened anchor folder; weights stay on disk until they are asked for."""

    folder: Path
    weights: ModelFolder
    architecture: Architecture
    shared: dict[str, StoredTensor] = field(repr=False)  # what `public_router.safetensors` holds
    advance: Callable[[float], None] = field(default=lambda _amount: None, repr=False)

    @cached_property
    def digest(self) -> str:
        """Over every weight; reads the whole model once."""
        return self.weights.digest(self.advance)

    @cached_property
    def tokenizer_digest(self) -> str:
        return tokenizer_digest(self.folder)

    @cached_property
    def router_digest(self) -> str:
        """Over the public router rows alone, which experts were trained beside."""
        rows = (stored for name, stored in self.shared.items() if name.endswith("router.weight"))
        return combined_digest((stored.name, stored.digest()) for stored in rows)

    @cached_property
    def router(self) -> dict[str, torch.Tensor]:
        """The tensors of `public_router.safetensors`."""
        return _loaded(self.shared)

    @property
    def public_bits(self) -> float | None:
        """Bits per byte of held-out public text, by `anchor.json`; None if it says nothing that could be that."""
        path = self.folder / SHARED / "anchor.json"
        measured = read_json(path).get(PUBLIC_TEXT) if path.exists() else None
        bits = measured.get(BITS_PER_BYTE) if isinstance(measured, dict) else None
        return bits if isinstance(bits, float) and 0 < bits < float("inf") else None

    @property
    def reference(self) -> Path:
        """The folder with the public reference text, `train` and `test`; it may be absent."""
        return self.folder / SHARED / REFERENCE

    def public_row(self, n: int) -> torch.Tensor:
        """The public router row [D] of layer `n`."""
        return self.router[ROUTER_WEIGHT.format(n=n)]

    @cached_property
    def first_layer(self) -> int:
        """The first layer whose feed-forward network has an effect; in a context layer the norm behind it is zero."""
        names = (
            f"model.layers.{n}.post_feedforward_layernorm.weight" for n in range(self.architecture.num_hidden_layers)
        )
        return next((n for n, name in enumerate(names) if self.weights.tensor(name).any()), 0)

    @cached_property
    def moment_table(self) -> dict[str, StoredTensor] | None:
        """Where the tensors of `public_moments.safetensors` lie; None if the anchor ships none."""
        path = self.folder / SHARED / MOMENTS
        return open_table(path) if path.exists() else None

    def moments(self, n: int) -> tuple[Values, Values] | None:
        """Mean [D] and covariance [D, D] of the router input of layer `n` on public text, float64; None if none ship.

        One layer at a time: those of a large anchor are gigabytes. Raises `ModelFolderError` if they do not fit it.
        """
        if self.moment_table is None:
            return None
        import numpy as np

        from merge.tensor_io.covariance import unpacked

        prefix, size = f"layers.{n}.", self.architecture.hidden_size
        found = {name[len(prefix) :]: part for name, part in self.moment_table.items() if name.startswith(prefix)}
        try:
            if {name: (part.dtype, part.shape) for name, part in found.items()} not in _moment_forms(size):
                raise ValueError("other tensors, or of other shapes")
            values = {
                name: np.frombuffer(part.read(), DTYPES[part.dtype][0]).reshape(part.shape)
                for name, part in found.items()
            }
            mean_D = values["mean"].astype(np.float64)
            if "correlation" in values:
                covariance_DD = unpacked(values["deviation"], values["correlation"])
            else:
                covariance_DD = values["second_moment"].astype(np.float64) - np.outer(mean_D, mean_D)
            if not np.isfinite(mean_D.sum() + covariance_DD.sum()):
                raise ValueError("not finite")
        except ValueError as error:
            path = self.folder / SHARED / MOMENTS
            raise ModelFolderError(
                f"{path}: no moments of layer {n} that fit this anchor ({error}). Copy the file again."
            ) from None
        return mean_D, covariance_DD


def anchor_files(folder: Path) -> dict[str, Path]:
    """The files of an anchor by their names in it: model, card, and what owners share. Others stay where they are."""
    shared = (ROUTER, MOMENTS, "anchor.json", *(f"{REFERENCE}/{split}.jsonl.gz" for split in ("train", "test")))
    paths = [*kept_files(folder), folder / README, *(folder / SHARED / name for name in shared)]
    return {path.relative_to(folder).as_posix(): path for path in sorted(paths) if path.is_file()}


def find_anchor(experts: list[ExpertFile]) -> Path:
    """The first folder that a header names and that exists, relative to the current folder or to an expert file's.

    Raises `ModelFolderError` if none is.
    """
    for expert in experts:
        beside = expert.path.resolve().parent
        for folder in (Path(), beside, beside.parent):
            candidate = folder / expert.header.anchor.name
            with suppress(OSError):  # a name that no file system takes
                if (candidate / "config.json").exists():
                    return candidate
    raise ModelFolderError(
        f"{experts[0].path}: its header names the anchor {experts[0].header.anchor.name[:200]!r}, which is not here. "
        "Say where it is with --anchor FOLDER."
    )


def open_anchor(folder: Path) -> Anchor:
    """Opens an anchor and checks that it is a whole OLMo-2 with the shared public router rows.

    Raises `ModelFolderError` saying what is missing and how to make it.
    """
    from merge.tensor_io.float_formats import all_finite  # numpy takes a while to import, and `about` does without

    weights = open_olmo2(folder)
    arch = architecture_of(weights.config, str(folder))
    path = folder / SHARED / ROUTER
    if not path.exists():
        raise ModelFolderError(
            f"{folder}: no {SHARED}/{ROUTER}. Every owner needs the same public router rows, so they come with the "
            f"anchor. Make them once: python train_anchor.py anchor.path={folder} data.path=PUBLIC_TEXT output=NEW"
        )
    shared = open_table(path)
    for name, shape in _router_tensors(arch).items():
        if name not in shared or shared[name].shape != shape:
            found = shared[name].shape if name in shared else "nothing"
            raise ModelFolderError(f"{path}: {name} is {found}, this anchor needs {shape}.")
        if not all_finite(shared[name].read(), shared[name].dtype):
            raise ModelFolderError(f"{path}: {name} holds NaN or infinite values.")
    return Anchor(folder, weights, arch, shared)


def open_olmo2(folder: Path, config: dict[str, Any] | None = None) -> ModelFolder:
    """Opens a model folder and checks names and shapes against `config`, by default that of its `config.json`.

    Raises `ModelFolderError` unless it is a whole OLMo-2.
    """
    weights = ModelFolder(folder, config)
    arch = architecture_of(weights.config, str(folder))
    weights.require(anchor_tensors(arch), "a whole OLMo-2")
    return weights


def write_shared(
    folder: Path, router: dict[str, torch.Tensor], moments: dict[str, torch.Tensor] | None, about: dict[str, Any]
) -> None:
    """Writes the shared files into an anchor folder that holds weights and tokenizer already.

    Args:
        folder: the anchor.
        router: the tensors of `public_router.safetensors`.
        moments: the tensors of `public_moments.safetensors`, or None to ship none.
        about: how the rows were made, kept in `anchor.json`.
    """
    from merge.tensor_io.torch_tensors import save_tensors

    shared = folder / SHARED
    shared.mkdir(exist_ok=True)
    for name, tensors in ((ROUTER, router), (MOMENTS, moments)):
        if tensors is None:
            (shared / name).unlink(missing_ok=True)
        else:
            with new_file(shared / name, replace=True) as partial:  # the tensors may be mapped from the file that goes
                save_tensors(partial, dict(sorted(tensors.items())), {"format": "pt"})
    anchor = open_anchor(folder)
    write_json(
        shared / "anchor.json",
        {
            "format": "flexo.anchor",
            "version": 1,
            "digest": anchor.digest,
            "tokenizer_digest": anchor.tokenizer_digest,
            "router_digest": anchor.router_digest,
            "architecture": anchor.architecture.to_dict(),
        }
        | about,
    )


def about(folder: Path) -> dict[str, Any]:
    """What `anchor.json` says: digests and how the anchor was made. A merge computes digests anew."""
    return read_json(folder / SHARED / "anchor.json")


def tokenizer_digest(folder: Path) -> str:
    """The sha256 of `tokenizer.json`."""
    path = folder / "tokenizer.json"
    if not path.exists():
        raise ModelFolderError(f"{path}: no such file. An anchor comes with its tokenizer.")
    return sha256_file(path)


def same_tokenizer(one: Path, other: Path) -> bool:
    """Whether two folders hold the same tokenizer: `tokenizer.json` saved again with the same content is no change."""
    if tokenizer_digest(one) == tokenizer_digest(other):
        return True
    return read_json(one / "tokenizer.json") == read_json(other / "tokenizer.json")


def _router_tensors(arch: Architecture) -> Shapes:
    shapes: Shapes = {}
    for n in range(arch.num_hidden_layers):
        shapes[ROUTER_WEIGHT.format(n=n)] = shapes[BIAS_DIRECTION.format(n=n)] = (arch.hidden_size,)
        shapes[BIAS_ERROR.format(n=n)] = (1,)
    return shapes


def _moment_forms(size: int) -> list[dict[str, tuple[str, tuple[int, ...]]]]:
    """Dtypes and shapes of a layer's moments as they are written, and as they were before 2026-11-29."""
    pairs = (size * (size - 1) // 2,)
    return [
        {"mean": ("F32", (size,)), "deviation": ("F32", (size,)), "correlation": ("I16", pairs)},
        {"mean": ("F32", (size,)), "second_moment": ("F32", (size, size))},
    ]


def _loaded(table: dict[str, StoredTensor]) -> dict[str, torch.Tensor]:
    from merge.tensor_io.torch_tensors import load_tensor

    return {name: load_tensor(stored) for name, stored in table.items()}
