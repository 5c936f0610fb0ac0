"""Model folders by local path or hub id."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from flexo.errors import InputError

HUB_ID = re.compile(r"[\w-]+/[\w.-]+")
FILES = ["*.json", "*.safetensors", "*.txt", "*.jinja", "flexo/*", "flexo/public/*"]
TOKENIZER = [  # all that text is prepared with
    "tokenizer.json", "config.json", "tokenizer_config.json", "special_tokens_map.json", "chat_template.*",
]  # fmt: skip


def local_folder(
    path: str, revision: str | None = None, *, setting: str = "anchor.path=", files: Sequence[str] = FILES
) -> Path:
    """A folder on this machine for a path or a hub id; of a hub repository, `files` are fetched into the hub's cache.

    Raises `InputError` if there is neither such a folder nor such a repository; it begins with `setting`, which is how
    the path was given.
    """
    if Path(path).is_dir():
        return Path(path)
    if not HUB_ID.fullmatch(path) or path.startswith(("./", "../")):
        raise InputError(
            f"{setting}{path}: no such folder. Make an anchor with python train_anchor.py anchor=tiny "
            "data.path=data/corpora/public output=anchor, or give a folder or a hub id."
        )
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(path, revision=revision, allow_patterns=list(files)))
    except Exception as error:  # no network, no such repository, gated: the hub client raises many kinds
        raise InputError(
            f"{setting}{path}: no such folder, and not to be had from the hub ({type(error).__name__}: "
            f"{str(error).strip().splitlines()[0][:160]})."
        ) from error
