"""Choosing experts of a loaded model for the calls inside a `with` block: one choice for all, or one per sequence.

    model, tokenizer = load_model(Path("model"))
    with select_experts(model, ["public", "math"]):
        model.generate(...)
    with select_experts(model, [["public", "math"], ["public"]]):     # a batch of two, each with its own entitlement
        model.generate(...)

With one choice, the other experts do not exist inside the block: their router rows are removed, and what is computed is
bit for bit what a model merged without them computes. With several, each sequence is routed by the rows of its own
choice alone, and differs from the same sequence run alone by no more than ordinary batching does (docs/inference.md).
No expert's weights are copied: the experts' numbers are translated instead.

B sequences, T positions, D hidden size, E experts of the model, S of them selected, K active ones.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel

from flexo.errors import InputError, refuse_unknown
from inference.selected_blocks import RowsBlock, SelectedBlock, SequencesBlock
from merge.formats.manifest import MANIFEST, read_manifest


def expert_names(model: PreTrainedModel) -> list[str]:
    """The domains of a loaded merged model in the order of its experts, `public` first, from the folder's manifest."""
    return [expert["domain"] for expert in manifest_experts(model)]


def manifest_experts(model: PreTrainedModel) -> list[dict[str, Any]]:
    """What the folder's manifest says about each expert of a loaded merged model, in the order of the experts."""
    found: list[dict[str, Any]] = read_manifest(Path(str(model.name_or_path)))["experts"]
    base: Any = model.model
    if len(found) != (held := base.layers[0].mlp.experts.num_experts):
        raise InputError(
            f"{MANIFEST} of {model.name_or_path} lists {len(found)} experts, the model has {held}. "
            "Were its files changed?"
        )
    return found


@contextmanager
def select_experts(
    model: PreTrainedModel, names: Sequence[str] | Sequence[Sequence[str]], top_k: int | None = None
) -> Iterator[PreTrainedModel]:
    """Leaves only the experts `names` in `model` until the block ends.

    Args:
        model: a `FlexOlmoForCausalLM` loaded from a merged folder. It is changed in place, so no other thread may run
            it meanwhile.
        names: domains, in any order, at least one; or a list of them for each sequence of the batch. Where generate
            makes several sequences of one (beams, num_return_sequences), each needs its own list.
        top_k: active experts per token inside the block; None takes the model's number, at most all chosen.

    Raises:
        InputError: an unknown or repeated name, a top_k that does not fit, or a selection inside another; inside the
            block, a batch with another number of sequences than `names`.
    """
    known = expert_names(model)
    layers: Any = model.model.layers
    if any(isinstance(layer.mlp, SelectedBlock) for layer in layers):
        raise InputError("experts of this model are selected already. A selection inside another is not possible.")
    per_sequence = bool(names) and not any(isinstance(name, str) for name in names)
    lists: Any = names if per_sequence else [names]
    choices = [_indices(choice, known) for choice in lists]
    before = model.config.num_experts_per_tok
    active = max(_top_k(top_k, len(choice), before) for choice in choices)
    alike = all(choice == choices[0] for choice in choices)
    blocks = [layer.mlp for layer in layers]
    try:
        for layer, block in zip(layers, blocks, strict=True):
            if alike:
                layer.mlp = RowsBlock(block, choices[0], active, len(choices) if per_sequence else None)
            else:
                layer.mlp = SequencesBlock(block, choices, active)
        _count(model, len(choices[0]) if alike else len(known), active)
        yield model
    finally:
        for layer, block in zip(layers, blocks, strict=True):
            if layer.mlp is not block:
                layer.mlp.restore()
                layer.mlp = block
        _count(model, len(known), before)


def _top_k(given: int | None, selected: int, models: int) -> int:
    top_k = min(models, selected) if given is None else given
    if not 1 <= top_k <= selected:
        raise InputError(f"top_k {top_k}: {selected} experts are selected, expected 1 to {selected}.")
    return top_k


def _count(model: Any, experts: int, top_k: int) -> None:
    for place in (model, model.config):  # the model keeps its own numbers for the load-balancing loss
        place.num_experts, place.num_experts_per_tok = experts, top_k


def _indices(names: Sequence[str], known: list[str]) -> list[int]:
    refuse_unknown(names, known, "this model")
    if not names or len(set(names)) != len(names):
        raise InputError(f"experts {', '.join(names) or '(none)'}: expected at least one, each named once.")
    return sorted(known.index(name) for name in names)
