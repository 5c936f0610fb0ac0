"""The models of a command line: the kind and the digest of each, and a shelf that loads them when they are needed.

NAME=PATH is a dense folder, a merged folder or an expert file. An expert file is measured as the pair that a merge of
it alone gives: beside the public network, its router bias folded into the row as in a merge.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from transformers import PreTrainedModel

from evals.scoring.held_out import PUBLIC
from flexo.atomic_files import sha256_file
from flexo.errors import InputError
from inference.load import load_model
from merge.formats.anchor_folder import SHARED, same_tokenizer
from merge.formats.expert_file import open_expert
from merge.formats.manifest import MANIFEST
from merge.formats.merged_folder import Merged, open_merged
from merge.formats.model_folder import ABOUT, ModelFolder
from merge.planning.merge_options import MergeOptions
from merge.planning.merge_plan import Plan, execute, plan
from merge.tensor_io.json_file import read_json


@dataclass(frozen=True)
class Given:
    """A model of the command line; `anchor` is the folder that an expert file belongs to."""

    name: str
    path: Path
    kind: Literal["anchor", "dense", "pair", "merged"]
    anchor: Path | None = None

    @property
    def tokenizer(self) -> Path:
        """The folder that holds its tokenizer."""
        return self.path if self.anchor is None else self.anchor

    def renamed(self, name: str) -> Given:
        return replace(self, name=name)

    @cached_property
    def config(self) -> dict[str, Any]:
        return read_json(self.tokenizer / "config.json")

    @cached_property
    def merged(self) -> Merged | None:
        """The opened and checked folder of a merge; None for other models and for folders without a manifest."""
        return (
            open_merged(self.path, quantised=True)
            if self.kind == "merged" and (self.path / MANIFEST).exists()
            else None
        )

    @property
    def experts(self) -> list[str] | None:
        """Domains in the order of a merged folder's experts; None if no manifest names them."""
        return None if self.merged is None else self.merged.domains

    @property
    def active(self) -> int | None:
        return self.config.get("num_experts_per_tok") if self.kind == "merged" else None

    @property
    def holds_anchor(self) -> bool:
        """Whether its public expert alone is the anchor: so in a merge of expert files, not in one of whole models."""
        return self.merged is not None and all("file" in expert for expert in self.merged.manifest["experts"][1:])

    @cached_property
    def domain(self) -> str:
        """The domain that its file or folder names; its own name if none is named."""
        if self.kind == "pair":
            return open_expert(self.path).domain
        if self.kind == "anchor":
            return PUBLIC
        about = read_json(self.path / ABOUT) if (self.path / ABOUT).exists() else {}
        return str(about.get("domain", self.name))

    @property
    def averaged(self) -> bool:
        """Whether it is a soup: an ensemble of specialists leaves it out."""
        return (self.path / ABOUT).exists() and "models" in read_json(self.path / ABOUT)

    @property
    def nbytes(self) -> int:
        """The bytes that `digest` reads."""
        return self.path.stat().st_size if self.kind == "pair" else ModelFolder(self.path).nbytes

    def digest(self, weights: Callable[[Path], str]) -> str:
        """A sha256 over those of its files that its figures depend on; `weights` digests a folder's weights."""
        if self.kind == "pair":
            return sha256_file(self.path)
        parts = [weights(self.path), self.config, self.experts]
        return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def read_given(arguments: Sequence[str], anchor: Path | None, option: str = "--anchor") -> list[Given]:
    """The models of a command line, the anchor first.

    Args:
        arguments: `PATH` or `NAME=PATH`.
        anchor: a folder; None takes the first dense folder that holds what owners share, if there is one.
        option: of the command, that gives it.

    Raises:
        InputError: a path holds no model, two models have one name, or their tokenizers differ.
    """
    named = [_split(argument) for argument in arguments]
    for _, path in named:
        if not path.exists():
            raise InputError(f"{path}: no such file or folder. Expected a model folder or an expert file.")
    if anchor is None:
        anchor = next((path for _, path in named if _is_dense(path) and (path / SHARED).is_dir()), None)
    elif not _is_dense(anchor):
        raise InputError(f"{option} {anchor}: not a dense model folder.")
    if anchor and not any(_same(path, anchor) for _, path in named):
        named = [("anchor", anchor), *named]
    given: list[Given] = []
    for name, path in named:
        if path.is_file():
            if anchor is None:
                raise InputError(f"{path}: an expert is measured beside its anchor. Give the anchor: {option} FOLDER.")
            given.append(Given(name, path, "pair", anchor))
        elif not _is_dense(path):
            given.append(Given(name, path, "merged"))
        elif anchor and _same(path, anchor):
            given.insert(0, Given(name, path, "anchor"))
        else:
            given.append(Given(name, path, "dense"))
    names = [model.name for model in given]
    for model in given:
        if names.count(model.name) > 1:
            raise InputError(
                f"{model.path}: another model is called {model.name!r}, too. Give it a name of its own: a={model.path}"
            )
        if not same_tokenizer(model.tokenizer, given[0].tokenizer):
            raise InputError(
                f"{model.path}: its tokenizer is not that of {given[0].path}. Measure models of different anchors with "
                "separate commands."
            )
    return given


class Shelf:
    """Loaded models: those of the last call are kept, all others freed. Digests of folders are kept."""

    def __init__(self, folder: Path, dtype: str, device: str) -> None:
        """`folder` is an empty folder for merges of expert files; `new_shelf` makes one."""
        self.folder, self.dtype, self.device = folder, dtype, device
        self._held: dict[Path, PreTrainedModel] = {}
        self._weights: dict[Path, str] = {}

    def digests(self, given: Sequence[Given], advance: Callable[[float], None]) -> dict[str, str]:
        """Name of a model -> its digest; `advance` is told the bytes read."""
        found = {}
        for model in given:
            found[model.name] = model.digest(lambda folder: self.weights(folder, advance))
            if model.kind == "pair":
                advance(model.nbytes)
        return found

    def weights(self, folder: Path, advance: Callable[[float], None] = lambda _amount: None) -> str:
        """The digest of a folder's weights; each folder is read once."""
        if folder.resolve() not in self._weights:
            self._weights[folder.resolve()] = ModelFolder(folder).digest(advance)
        return self._weights[folder.resolve()]

    def models(self, folders: Sequence[Path]) -> list[PreTrainedModel]:
        """The models of these folders; only those are loaded that the last call did not have."""
        self._held = {path: model for path, model in self._held.items() if path in folders}
        for merged in self.folder.iterdir():
            if merged not in folders:
                shutil.rmtree(merged)
        for path in folders:
            if path not in self._held:
                self._held[path], _ = load_model(path, self.dtype, self.device)
        return [self._held[path] for path in folders]

    def merged(self, made: Plan) -> PreTrainedModel:
        """The model of a merge. Every expert file is checked; the anchor is read once for all of them."""
        names = "".join(f"{expert.path.resolve()}\n" for expert in made.experts)
        folder = self.folder / hashlib.sha256(names.encode()).hexdigest()[:16]
        if folder not in self._held:
            made.base.refuse_other(self.weights(made.base.folder))
            for expert in made.experts:
                expert.verify()
            execute(made, folder, verify=False)
        return self.models([folder])[0]


@contextmanager
def new_shelf(dtype: str, device: str) -> Iterator[Shelf]:
    """A shelf whose temporary folder is deleted at the end."""
    with tempfile.TemporaryDirectory(prefix="flexo-eval-") as folder:
        yield Shelf(Path(folder), dtype, device)


def plan_pairs(pairs: Sequence[Given]) -> Plan:
    """The merge of expert files of one anchor, all active; raises `InputError` for a file of another anchor."""
    options = MergeOptions(top_k=len(pairs) + 1, public_weight=1.0)  # margins as they were trained
    return plan([pair.path for pair in pairs], pairs[0].anchor, options)


def _split(argument: str) -> tuple[str, Path]:
    name, equals, path = argument.partition("=")
    if not equals or Path(argument).exists():
        path = argument
        whole = Path(path).resolve()
        name = whole.stem if whole.is_file() else whole.name
    if not name.strip() or not name.isprintable():
        raise InputError(f"{argument}: a model needs a printable name: NAME=PATH.")
    return name, Path(path)


def _is_dense(path: Path) -> bool:
    return path.is_dir() and not (path / MANIFEST).exists() and "num_experts" not in read_json(path / "config.json")


def _same(one: Path, other: Path) -> bool:
    return one.resolve() == other.resolve()
