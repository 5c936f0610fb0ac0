"""Which files hold the weights of a model folder: one answer for all that reads weights here.

transformers takes `model.safetensors` before an index, vLLM and others take the index first, and a setting or an
adapter beside the weights changes what transformers loads. So a folder is refused unless all of them read the same.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from flexo.errors import ModelFolderError
from merge.tensor_io.json_file import read_json
from merge.tensor_io.stored_tensor import DTYPES, StoredTensor, read_table

SINGLE, INDEX, ADAPTER = "model.safetensors", "model.safetensors.index.json", "adapter_config.json"
EMBEDDING, HEAD = "model.embed_tokens.weight", "lm_head.weight"

Table = dict[str, StoredTensor]


def weight_files(folder: Path) -> list[Path]:
    """The files that hold the weights of a model folder: an index and its shards, or one file."""
    index = folder / INDEX
    return [index, *_shards(index)] if index.exists() else _single(folder)


def stored_tensors(folder: Path, config: Mapping[str, Any]) -> Table:
    """The weights of a model folder by name.

    Raises `ModelFolderError` unless there is one whole set of weights, and it is the one that transformers would load.
    """
    if (other := config.get("transformers_weights")) is not None:
        raise ModelFolderError(
            f"{folder / 'config.json'}: transformers_weights is {str(other)[:80]!r}, which makes transformers load "
            f"that file; all else reads {SINGLE} or its index. Save the model again (save_pretrained), or delete "
            f"the setting if {SINGLE} is meant."
        )
    if (folder / ADAPTER).exists():
        raise ModelFolderError(
            f"{folder / ADAPTER}: an adapter lies beside the weights, and some programs would add it to them. Merge "
            "it into the weights (merge_and_unload of peft) and save that, or move the adapter_* files away."
        )
    index, single = folder / INDEX, _single(folder)
    table = _sharded(index) if index.exists() else _merged(single)
    if index.exists() and single and single != _shards(index):
        _refuse_unlike(folder, _merged(single), table)
    elif not index.exists() and not single:
        others = sorted(path.name for kind in ("*.bin", "*.pt", "*.pth", "*.gguf") for path in folder.glob(kind))
        found = f"found {listed(others)}; convert it to safetensors first" if others else "is it a model folder?"
        raise ModelFolderError(f"{folder}: no {SINGLE} and no {INDEX} ({found}).")
    return _without_copy_of_embedding(folder, config, table)


def open_table(path: Path) -> Table:
    """The tensors of a safetensors file, by name; raises `ModelFolderError` unless it is whole."""
    if not path.exists():
        raise ModelFolderError(f"{path}: the index names this shard, but it is missing. Copy or download it again.")
    try:
        return read_table(path)[0]
    except (OSError, ValueError) as error:
        raise ModelFolderError(f"{path}: not a whole safetensors file ({error}). Copy or download it again.") from None


def listed(names: list[str], limit: int = 4) -> str:
    """The first of some names, and how many more there are."""
    return (", ".join(names[:limit]) + (f" and {len(names) - limit} more" if len(names) > limit else "")) or "none"


def _single(folder: Path) -> list[Path]:
    return [folder / SINGLE] if (folder / SINGLE).exists() else []


def _weight_map(index: Path) -> dict[str, str]:
    weight_map = read_json(index).get("weight_map")
    if not isinstance(weight_map, dict) or not all(isinstance(file, str) for file in weight_map.values()):
        raise ModelFolderError(f"{index}: no weight_map with file names in it.")
    if foreign := [file for file in weight_map.values() if Path(file).name != file]:
        raise ModelFolderError(
            f"{index}: the shard {foreign[0][:80]!r} is not a plain file name; shards lie beside the index."
        )
    return weight_map


def _shards(index: Path) -> list[Path]:
    return [index.parent / file for file in sorted(set(_weight_map(index).values()))]


def _sharded(index: Path) -> Table:
    """The tensors of all shards, if they are those that the index lists, each in its place."""
    table, weight_map = _merged(_shards(index)), _weight_map(index)
    for name in sorted(table.keys() | weight_map.keys()):
        lies, listed_in = table[name].path.name if name in table else "no file", weight_map.get(name, "no file")
        if lies != listed_in:
            raise ModelFolderError(
                f"{index}: {name[:80]!r} is in {lies}, the index has it in {listed_in}. Are shards of two models "
                "mixed here? Copy or download the folder again."
            )
    return table


def _merged(files: list[Path]) -> Table:
    table: Table = {}
    for path in files:
        for name, stored in open_table(path).items():
            if name in table:
                raise ModelFolderError(
                    f"{path}: {name[:80]!r} is also in {table[name].path.name}, and a tensor has one place only. Are "
                    "shards of two models mixed here?"
                )
            if stored.dtype not in DTYPES:
                raise ModelFolderError(
                    f"{path}: {name[:80]!r} has dtype {stored.dtype}, expected one of {', '.join(DTYPES)}."
                )
            table[name] = stored
    return table


def _refuse_unlike(folder: Path, single: Table, sharded: Table) -> None:
    """Of two sets of weights, transformers loads one and other programs the other: they must hold the same."""
    for name in sorted(single.keys() | sharded.keys()):
        one, other = single.get(name), sharded.get(name)
        if one is None or other is None or one.title != other.title or one.digest() != other.digest():
            raise ModelFolderError(
                f"{folder}: holds two sets of weights, {SINGLE} and the shards of {INDEX}, and {name[:80]!r} is not "
                "the same in both. Programs differ in which they load. Move the wrong set away."
            )


def _without_copy_of_embedding(folder: Path, config: Mapping[str, Any], table: Table) -> Table:
    """Where embeddings are tied, a stored head is a copy of them, or not what config.json says."""
    if config.get("tie_word_embeddings") is not True or not {EMBEDDING, HEAD} <= table.keys():
        return table
    if table[EMBEDDING].digest() != table[HEAD].digest():
        raise ModelFolderError(
            f"{folder}: config.json ties the embeddings (tie_word_embeddings), but {HEAD} is stored and differs from "
            f"{EMBEDDING}. If the head was trained, set tie_word_embeddings to false; if not, save the model again."
        )
    return {name: stored for name, stored in table.items() if name != HEAD}
