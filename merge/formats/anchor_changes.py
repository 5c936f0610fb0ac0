"""What differs between two anchor folders, and whether the function of the model is the same: for experts that stay.

Experts are bound to the weights, the tokenizer and the public rows of their anchor, not to its files. Weights may be
saved again in other shards, and settings that only concern generation, chat or the software may change. Whatever is not
known here to be harmless is taken to change the function.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from flexo.atomic_files import sha256_file
from merge.formats.anchor_folder import README, ROUTER, SHARED, Anchor, anchor_files, same_tokenizer
from merge.formats.architecture import merged_config
from merge.model_files.kept_files import LICENCES
from merge.model_files.weight_files import INDEX, weight_files
from merge.tensor_io.json_file import read_json

MISSING = object()
HARMLESS = frozenset({  # settings of tokenizer_config.json
    "backend", "chat_template", "clean_up_tokenization_spaces", "is_local", "local_files_only", "model_max_length",
    "name_or_path", "padding_side", "processor_class", "tokenizer_class", "truncation_side",
})  # fmt: skip
FREE = frozenset({"generation_config.json", "chat_template.jinja", README, *LICENCES})


@dataclass(frozen=True)
class Changes:
    """What is different in the second of two anchors."""

    harmless: list[str] = field(default_factory=list)  # the function stays
    grave: list[str] = field(default_factory=list)  # experts of the first do not fit the second

    @property
    def same_function(self) -> bool:
        return not self.grave


def compare_anchors(old: Anchor, new: Anchor) -> Changes:
    """What differs; reads all weights of both once.

    Files are told apart by what is in them: `tokenizer.json` saved again with the same content is no change.
    """
    found = Changes()
    if old.architecture.to_dict() != new.architecture.to_dict():
        found.grave.append("the architecture")
    elif old.digest != new.digest:
        found.grave.append("the weights")
    elif _weights(old.folder) != _weights(new.folder):
        found.harmless.append("the same weights, saved in other files")
    if old.router_digest != new.router_digest:
        found.grave.append("the public router rows")
    if old.tokenizer_digest != new.tokenizer_digest:
        if same_tokenizer(old.folder, new.folder):
            found.harmless.append("tokenizer.json, written anew with the same content")
        else:
            found.grave.append("tokenizer.json")
    for name in sorted(_others(old.folder) | _others(new.folder)):
        _compare(name, old.folder / name, new.folder / name, found)
    return found


def _compare(name: str, old: Path, new: Path, found: Changes) -> None:
    if old.exists() and new.exists() and sha256_file(old) == sha256_file(new):
        return
    if name in FREE or name.startswith("flexo/"):
        found.harmless.append(f"{name}{'' if new.exists() else ' is gone'}{'' if old.exists() else ' is new'}")
    elif name in ("config.json", "tokenizer_config.json") and old.exists() and new.exists():
        before, after = read_json(old), read_json(new)
        changed = _settings(before, after)
        grave = sorted(_settings(_said(before), _said(after)) if name == "config.json" else changed - HARMLESS)
        if grave:
            found.grave.append(f"{name}: {', '.join(grave)}")
        else:
            found.harmless.append(f"{name}: {', '.join(sorted(changed)) or 'only its layout'}")
    else:
        found.grave.append(name)


def _said(config: Mapping[str, Any]) -> dict[str, Any]:
    """What a checked `config.json` says beside its architecture, the same by whichever version it was written."""
    made = merged_config(config, 1, 1)
    return {name: made[name] for name in ("max_position_embeddings", "bos_token_id", "eos_token_id", "pad_token_id")}


def _settings(before: Mapping[str, Any], after: Mapping[str, Any]) -> set[str]:
    """The settings that differ."""
    names = before.keys() | after.keys()
    return {name for name in names if _text(before, name) != _text(after, name)}


def _text(values: Mapping[str, Any], name: str) -> str:
    value = values.get(name, MISSING)
    return "" if value is MISSING else json.dumps(value, sort_keys=True)


def _weights(folder: Path) -> dict[str, str]:
    return {path.name: sha256_file(path) for path in weight_files(folder) if path.name != INDEX}


def _others(folder: Path) -> set[str]:
    """All files but weights, tokenizer and what digests cover already."""
    covered = {"tokenizer.json", f"{SHARED}/{ROUTER}", f"{SHARED}/anchor.json"}
    weights = {path.name for path in weight_files(folder)}
    return anchor_files(folder).keys() - covered - weights
