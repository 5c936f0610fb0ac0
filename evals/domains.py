"""The domain matrix: bits per byte of the anchor, of each pair and of the merged model on each domain."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel

from evals.windows import TokenisedText
from evals.measure import bits_per_byte
from inference.select import expert_names, select_experts
from merge.assemble import MANIFEST


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
