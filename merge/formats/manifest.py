"""`manifest.json`, which says whose expert is whose in a merged folder, how it was made, and who has left."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from math import inf
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flexo.errors import ModelFolderError
from merge.formats.expert_header import DOMAIN
from merge.tensor_io.json_file import read_json
from merge.tensor_io.stored_tensor import combined_digest

if TYPE_CHECKING:
    from merge.formats.expert_file import ExpertFile
    from merge.formats.signatures import Voucher

MANIFEST = "manifest.json"


def read_manifest(folder: Path) -> dict[str, Any]:
    """The manifest of a merged folder; raises `ModelFolderError` if the folder is not one of ours."""
    if not (folder / MANIFEST).exists():
        raise ModelFolderError(f"{folder}: no {MANIFEST}. Is it a folder made by flexo-merge?")
    manifest = read_json(folder / MANIFEST)
    experts = manifest.get("experts")
    if manifest.get("format") != "flexo.manifest" or manifest.get("version") != 1 or not isinstance(experts, list):
        raise ModelFolderError(f"{folder / MANIFEST}: not a flexo manifest of version 1.")
    for entry in experts:  # a name goes into tables, commands and the card of the next model
        if not isinstance(entry, dict) or not DOMAIN.fullmatch(str(entry.get("domain"))):
            raise ModelFolderError(f"{folder / MANIFEST}: an expert without a plain domain name. Was it edited?")
    return manifest


def public_weight_of(folder: Path, manifest: Mapping[str, Any]) -> float:
    """How many domains public text counts for in the rows of a merged folder; 1 where its manifest does not say."""
    weight = manifest.get("public_weight", 1.0)
    if isinstance(weight, bool) or not isinstance(weight, int | float) or not 0 < weight < inf:
        raise ModelFolderError(f"{folder / MANIFEST}: public_weight is {weight!r}, expected a positive number.")
    return float(weight)


def made_at() -> str:
    """The time in UTC, or that of SOURCE_DATE_EPOCH, so that a merge can be repeated to the byte."""
    made = int(os.environ.get("SOURCE_DATE_EPOCH", time.time()))
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(made))


def expert_entry(expert: ExpertFile, voucher: Voucher | None) -> dict[str, Any]:
    """What the manifest says of an expert that joins, without its index."""
    about = expert.header.to_dict()
    tensors = about.pop("tensors")
    about.pop("anchor")
    digest = combined_digest((name, info["sha256"]) for name, info in tensors.items())
    vouched = {"vouched": voucher.to_dict()} if voucher else {}
    return {"file": expert.path.name, "digest": digest} | about | {"router_bias": expert.has_bias} | vouched
