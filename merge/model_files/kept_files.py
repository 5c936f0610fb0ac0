"""Which files of a model folder go along when it is copied: an allow-list, because a trainer leaves others beside them.

Optimiser states, logs and arguments of a run may hold paths, host names and traces of the text it was trained on.
"""

from __future__ import annotations

import shutil
from collections.abc import Collection
from pathlib import Path

from merge.model_files.config_keys import LEFT_OUT, QUANTISED
from merge.model_files.weight_files import weight_files
from merge.tensor_io.json_file import read_json, write_json

TOKENIZER_FILES = (
    "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "vocab.json",
    "merges.txt", "chat_template.jinja", "generation_config.json",
)  # fmt: skip
SETTINGS = ("config.json", "tokenizer_config.json", "generation_config.json")  # that may name where a model lay
LICENCES = ("LICENSE", "LICENSE.txt", "LICENSE.md", "LICENCE", "NOTICE", "NOTICE.txt")


def kept_files(folder: Path) -> list[Path]:
    """The files of a model folder that belong to the model: config, weights, tokenizer, licence."""
    names = ["config.json", *TOKENIZER_FILES, *LICENCES]
    return weight_files(folder) + [folder / name for name in names if (folder / name).is_file()]


def left_behind(folder: Path) -> list[str]:
    """The names of all else that lies in a model folder, hidden files and folders aside."""
    kept = {path.name for path in kept_files(folder)}
    return sorted(path.name for path in folder.iterdir() if path.name not in kept and not path.name.startswith("."))


def copy_kept(source: Path, folder: Path, but: Collection[str] = ()) -> dict[str, list[str]]:
    """Copies the files that belong to a model, byte for byte but for settings that say nothing about it.

    Args:
        source: the model folder.
        folder: where the files go.
        but: names of files that stay.

    Returns:
        file -> the settings that were left out of it.
    """
    left_out = {}
    for path in kept_files(source):
        values = read_json(path) if path.name in SETTINGS else {}
        if names := sorted(values.keys() & _unsaid(path.name)):
            left_out[path.name] = names
        if path.name in but:
            continue
        if names:
            write_json(folder / path.name, {name: value for name, value in values.items() if name not in names})
        else:
            shutil.copyfile(path, folder / path.name)
    return left_out


def copy_beside(source: Path, folder: Path) -> None:
    """Copies what belongs beside weights and config.json: tokenizer, chat template, generation's defaults, licence."""
    for name in (*TOKENIZER_FILES, *LICENCES):
        if (source / name).exists():
            shutil.copyfile(source / name, folder / name)


def _unsaid(file: str) -> frozenset[str]:
    """The settings of a file that are left out where it is copied."""
    return LEFT_OUT | {QUANTISED} if file == "config.json" else frozenset({"_name_or_path", "name_or_path"})
