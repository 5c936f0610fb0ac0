"""Averages of dense models (soups), a baseline for merges of experts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch

from flexo.atomic_files import new_folder, refuse_occupied
from flexo.console import Advance, Progress, no_progress
from flexo.errors import ModelFolderError
from merge.formats.anchor_folder import open_olmo2, same_tokenizer
from merge.formats.architecture import anchor_tensors, architecture_of
from merge.formats.manifest import new_record
from merge.formats.merged_folder import finish
from merge.formats.model_folder import DENSE, ModelFolder, name_of
from merge.tensor_io.shard_writer import MAX_SHARD_SIZE, write_tensors
from merge.tensor_io.stored_tensor import OutputTensor
from merge.tensor_io.torch_tensors import computed_tensor


@dataclass(frozen=True)
class Average:
    """Dense models of one architecture and tokenizer, and how much each counts; the weights add up to 1."""

    models: list[ModelFolder]
    weights: list[float]

    def tensor(self, name: str) -> torch.Tensor:
        """The weighted average of one tensor, in the dtype of the first model's."""
        first = self.models[0].tensor(name)
        wide = torch.promote_types(first.dtype, torch.float32)
        total = torch.zeros(first.shape, dtype=wide)
        for model, weight in zip(self.models, self.weights, strict=True):
            total += weight * model.tensor(name).to(wide)
        if not total.isfinite().all():
            raise ModelFolderError(f"{self.models[0].folder}: the average of {name} is not finite. Which model failed?")
        return total.to(first.dtype)

    def output(self, name: str, shape: tuple[int, ...]) -> OutputTensor:
        return computed_tensor(name, shape, self.models[0].dtype(name), partial(self.tensor, name))


def average(folders: Sequence[Path], weights: Sequence[float] | None = None) -> Average:
    """Opens dense models that are to be averaged.

    Args:
        folders: OLMo-2 folders of one architecture, dtype and tokenizer.
        weights: how much each counts, in any unit; None: all the same.

    Raises:
        ModelFolderError: a folder is no whole OLMo-2 or does not fit the first, or weights do not fit the folders.
    """
    models = [open_olmo2(folder) for folder in folders]
    if not models:
        raise ModelFolderError("no models given. Example: flexo-soup specialists/math specialists/code -o soup/")
    first = models[0]
    arch = architecture_of(first.config, str(first.folder))
    for model in models[1:]:
        other = architecture_of(model.config, str(model.folder)).to_dict()
        for name, size in arch.to_dict().items():
            if other[name] != size:
                raise ModelFolderError(
                    f"{model.folder}: {name} is {other[name]}, {first.folder} has {size}. Only models that started "
                    "from the same one can be averaged."
                )
        if not same_tokenizer(model.folder, first.folder):
            raise ModelFolderError(f"{model.folder}: another tokenizer than {first.folder}. Their weights do not mix.")
        if changed := sorted(name for name in first.names if model.dtype(name) != first.dtype(name)):
            raise ModelFolderError(
                f"{model.folder}: {changed[0]} is {model.dtype(changed[0])}, {first.folder} has "
                f"{first.dtype(changed[0])}."
            )
    weights = [1.0] * len(models) if weights is None else list(weights)
    if len(weights) != len(models) or not all(0 <= w < float("inf") for w in weights) or not sum(weights) > 0:
        raise ModelFolderError(
            f"--weights {','.join(map(str, weights))}: expected {len(models)} numbers from 0 on, not all of them 0."
        )
    return Average(models, [weight / sum(weights) for weight in weights])


def soup(
    models: Sequence[Path | str],
    output: Path | str,
    *,
    weights: Sequence[float] | None = None,
    progress: Progress = no_progress,
) -> Average:
    """What `flexo-soup` does: dense models averaged, tensor by tensor, into one plain OLMo-2 folder.

    Args:
        models: dense OLMo-2 folders of one architecture, dtype and tokenizer.
        output: the folder to make, whole or not at all.
        weights: how much each counts, in any unit; None: all the same.
        progress: shows how far it is.

    Returns:
        What was averaged, with weights that add up to 1.

    Raises:
        InputError: models or weights do not fit together, or the output is not free.
    """
    refuse_occupied(Path(output))
    made = average([Path(model) for model in models], weights)
    with progress("averaging", made.models[0].nbytes) as advance:
        write_soup(made, Path(output), advance)
    return made


def write_soup(made: Average, output: Path, advance: Advance = lambda _amount: None) -> None:
    """Writes the average as a plain OLMo-2 folder, which must be free; `advance` is told the bytes written."""
    first = made.models[0]
    shapes = anchor_tensors(architecture_of(first.config, str(first.folder)))
    with new_folder(output) as folder:
        write_tensors(folder, [made.output(name, shape) for name, shape in shapes.items()], MAX_SHARD_SIZE, advance)
        models = [
            {"name": name_of(model.folder), "weight": weight}
            for model, weight in zip(made.models, made.weights, strict=True)
        ]
        record = new_record(DENSE, "average of dense models", models=models)
        finish(folder, output, first.config, first.folder, record)
