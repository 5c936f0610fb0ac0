"""Model folders by local path, or repositories of the Hugging Face hub as `hf://OWNER/NAME[@REVISION]`.

A name with a slash and nothing else is a path: a mistyped folder is never fetched from whoever registered its name.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from difflib import get_close_matches
from pathlib import Path

from flexo.errors import InputError

SCHEME = "hf://"
HUB_ID = re.compile(r"(?P<id>[\w-][\w.-]*/[\w.-]+)(?:@(?P<revision>[^@]+))?")
FILES = ["*.json", "*.safetensors", "*.txt", "*.jinja", "LICEN[SC]E*", "NOTICE*", "flexo/*", "flexo/public/*"]
TOKENIZER = [  # all that text is prepared with
    "tokenizer.json", "config.json", "tokenizer_config.json", "special_tokens_map.json", "chat_template.*",
]  # fmt: skip


def local_folder(
    path: str, revision: str | None = None, *, setting: str = "anchor.path=", files: Sequence[str] = FILES
) -> Path:
    """A folder on this machine for a path or a hub repository, of which `files` are fetched into the hub's cache.

    A repository is `hf://OWNER/NAME`, with `@REVISION` behind it or in `revision`. `OWNER/NAME` alone is one only with
    a `revision`, and where there is no folder OWNER here.

    Raises `InputError` if there is neither such a folder nor such a repository; it begins with `setting`, which is how
    the path was given.
    """
    said = path.startswith(SCHEME)
    if not said and Path(path).is_dir():
        return Path(path)
    repository = HUB_ID.fullmatch(path.removeprefix(SCHEME))
    implied = revision is not None and "@" not in path and not Path(path.partition("/")[0]).exists()
    if repository is None or not (said or implied):
        raise InputError(f"{setting}{path}: {_why_not(path, setting)}")
    from huggingface_hub import snapshot_download

    revision = repository["revision"] or revision
    try:
        return Path(snapshot_download(repository["id"], revision=revision, allow_patterns=list(files)))
    except Exception as error:  # no network, no such repository, gated: the hub client raises many kinds
        first = str(error).strip().splitlines()[0][:160]
        raise InputError(
            f"{setting}{path}: {'' if said else 'no such folder, and '}not to be had from the hub "
            f"({type(error).__name__}: {first})."
        ) from error


def _why_not(path: str, setting: str) -> str:
    """What is wrong with a path, and what may have been meant."""
    if path.startswith(SCHEME):
        return f"expected {SCHEME}OWNER/NAME or {SCHEME}OWNER/NAME@REVISION."
    if Path(path).exists():
        return "a file, expected a model folder."
    said = "no such folder."
    beside = Path(path).parent
    if beside.is_dir():
        near = get_close_matches(Path(path).name, [one.name for one in beside.iterdir() if one.is_dir()], n=1)
        said += f" Did you mean {beside / near[0]}?" if near else ""
    if HUB_ID.fullmatch(path):
        return f"{said} If the repository of the Hugging Face hub is meant, say so: {setting}{SCHEME}{path}"
    return (
        f"{said} Make an anchor with python train_anchor.py anchor=tiny data.path=data/corpora/public output=anchor, "
        f"or give a folder, or a repository of the hub: {setting}{SCHEME}OWNER/NAME"
    )
