"""The domain matrix: bits per byte of the anchor, of each pair and of the merged model on each domain."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer
from transformers import PreTrainedModel

from evals.bits import TokenisedText, bits_per_byte
from flexmix.corpus import SUFFIXES, find_split, read_documents
from flexmix.encoder import load_tokenizer
from inference.select import expert_names, select_experts
from merge.errors import InputError
from merge.manifest import MANIFEST


@dataclass(frozen=True)
class Matrix:
    """Bits per byte, `cells[model][domain]`, and how much text of each domain was read."""

    models: list[str]
    domains: list[str]
    cells: dict[str, dict[str, float]]
    nbytes: dict[str, int]

    def mean(self, model: str) -> float:
        return sum(self.cells[model].values()) / len(self.domains)

    def to_dict(self) -> dict[str, Any]:
        return {"unit": "bits per byte", "bytes": self.nbytes, "models": self.cells}


def find_domains(data: Path, wanted: Sequence[str] | None, known: Sequence[str]) -> dict[str, Path]:
    """The held-out file of each domain in `data`.

    Args:
        data: a folder with one corpus folder a domain, as `flexo-data sample` makes it.
        wanted: domains to read; None takes those of `known` that are there, or all that are if none is.
        known: the experts of the model, or nothing for a plain model.
    """
    if not data.is_dir():
        raise InputError(f"{data}: no such folder. Expected one folder a domain, with test.jsonl[.gz] in each.")
    visible = [path for path in data.iterdir() if not path.name.startswith(".")]  # others are unfinished
    there = sorted(path.name for path in visible if any((path / f"test{suffix}").is_file() for suffix in SUFFIXES))
    if wanted is None:
        wanted = [name for name in known if name in there] or there
    if not wanted:
        raise InputError(f"{data}: no domain in it. Expected folders with test.jsonl[.gz], such as {data}/public.")
    if absent := [name for name in wanted if name not in there]:
        raise InputError(f"{data}: no domain {absent[0]!r} in it. There are {', '.join(there) or 'none'}.")
    return {name: find_split(data / name, "test") for name in wanted}


def read_texts(files: Mapping[str, Path], folder: Path, max_bytes: int) -> dict[str, TokenisedText]:
    """The first documents of each held-out file, whole, up to about `max_bytes`, under a model folder's tokenizer."""
    tokenizer, end = load_tokenizer(folder)
    return {domain: _read_text(path, tokenizer, end, max_bytes) for domain, path in files.items()}


def _read_text(path: Path, tokenizer: Tokenizer, end: int, max_bytes: int) -> TokenisedText:
    texts: list[str] = []
    nbytes = 0
    for text in read_documents(path):
        if nbytes >= max_bytes:
            break
        if text.strip():
            texts.append(text)
            nbytes += len(text.encode())
    if not texts:
        raise InputError(f"{path}: no text in it.")
    encoded = tokenizer.encode_batch_fast(texts, add_special_tokens=False)
    return TokenisedText([encoding.ids for encoding in encoded], nbytes, end)


def domain_matrix(
    model: PreTrainedModel,
    texts: dict[str, TokenisedText],
    variants: dict[str, Callable[[], AbstractContextManager[Any]]],
    length: int,
    advance: Callable[[float], None],
) -> Matrix:
    """Scores every variant of a model on every domain.

    Args:
        model: the loaded model.
        texts: domain -> text.
        variants: name -> what to enter while the variant is scored, see `variants_of`.
        length: tokens in a window.
        advance: told the tokens scored.
    """
    cells: dict[str, dict[str, float]] = {}
    for name, enter in variants.items():
        with enter():
            cells[name] = {
                domain: bits_per_byte(model, text, length=length, advance=advance) for domain, text in texts.items()
            }
    return Matrix(list(variants), list(texts), cells, {domain: text.nbytes for domain, text in texts.items()})


def variants_of(model: PreTrainedModel) -> dict[str, Callable[[], AbstractContextManager[Any]]]:
    """Anchor, each pair with the public expert, and the merged model; a plain model has only itself.

    The public expert alone is the anchor: a softmax over one router row is one.
    """
    folder = Path(str(model.name_or_path))
    if not (folder / MANIFEST).exists():
        return {folder.resolve().name: nullcontext}
    names = expert_names(model)
    variants: dict[str, Callable[[], AbstractContextManager[Any]]] = {
        "anchor": partial(select_experts, model, ["public"], 1)
    }
    for name in names[1:]:
        variants[f"pair {name}"] = partial(select_experts, model, ["public", name], 2)
    return variants | {f"merged, top-{model.config.num_experts_per_tok} of {len(names)}": nullcontext}
