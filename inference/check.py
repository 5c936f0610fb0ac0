"""Checks by running it that a merged model is sound.

1. The public expert alone must be the anchor: its logits differ by no more than `TOLERANCE`. Both run in float32,
   the anchor rounded first where the merge has rounded. One expert of a mixture and a dense layer sum in another order,
   so the bits may differ; on CPU we saw none that did. Where experts are quantised, so is the anchor for this; for 4 it
   is not.
2. Hidden states, router logits and logits are finite in every layer.
3. No expert but the public one takes nearly all of a public text in a layer whose experts differ (`COLLAPSE`).
4. The merged model reads public text about as well as its anchor (`WORST_LOSS`). The worst recipe that `docs/log.md`
   records lost 9 %; a quarter more loss has another cause.

The text is the reference text that the anchor ships. Without one, random tokens are read, and 3 and 4 are left out.
"""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F  # noqa: N812 - the name everyone uses

from flexo.console import Progress, no_progress
from flexo.errors import InputError, ModelFolderError
from flexo.model_config import position_limit
from inference.load import load_model, scheme_of_folder
from inference.router_health import Routing, measure_routing
from inference.select import expert_names, select_experts
from merge.formats.anchor_folder import REFERENCE, SHARED
from merge.formats.architecture import FFN
from merge.formats.model_folder import ModelFolder
from merge.formats.quantization import Scheme
from merge.tensor_io.torch_tensors import NAMES

TOLERANCE = 1e-3  # of logits, over the largest of the anchor's; rounding gives about 1e-6 of it
COLLAPSE = 0.99
WORST_LOSS = 1.25
WINDOWS, LENGTH = 8, 256
LARGE, SHORT = 2 << 30, 64  # a folder of so many bytes reads windows of so many tokens: four passes take minutes
NO_LABEL = -100  # of the last position, behind which nothing is known
LOGITS = 1 << 26  # held at once: those of all windows of a 1B model are 0.8 GB for each of two runs


@dataclass(frozen=True)
class Check:
    """What was measured; `faults` is empty for a sound model."""

    faults: list[str]
    text: str  # what was read
    tokens: int
    public_difference: float  # largest difference of logits, over the largest logit of the anchor
    routing: Routing
    loss_anchor: float | None  # nats per token
    loss_merged: float | None

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def check(folder: Path | str, anchor: Path | str, device: str = "auto", progress: Progress = no_progress) -> Check:
    """Runs a merged folder and its anchor on 2,048 tokens, or on 512 where it is large.

    Raises `InputError` if one cannot be loaded. `progress` is told the bytes of the layers that have run.
    """
    folder, anchor = Path(folder), Path(anchor)
    model, tokenizer = load_model(folder, device=device)
    names = expert_names(model)
    opened = ModelFolder(folder)
    length = LENGTH if opened.nbytes < LARGE else SHORT
    x_BT, text = reference_tokens(anchor, tokenizer, model.config, length)
    x_BT = x_BT.to(model.device)
    stored = opened.dtype("model.embed_tokens.weight")
    rounded = {torch.bfloat16: "bfloat16", torch.float16: "float16"}.get(stored, "float32")
    dense, _ = load_model(anchor, rounded, device)  # as the merge may have rounded the anchor's weights, too
    if dense.config.vocab_size != model.config.vocab_size:
        raise InputError(f"{anchor}: another vocabulary than {folder} has. Is it the anchor of this model?")
    scheme = scheme_of_folder(folder)
    runs = [dense, *([dense] if scheme else []), model, model]
    with progress("running the models", sum(_nbytes(layer) for run in runs for layer in run.model.layers)) as advance:
        for run in (model, dense):
            in_float32(run, advance)
        expected = _states(dense, x_BT)
        loss_anchor, _ = _loss(dense, expected, x_BT)
        if scheme:
            _quantize(dense, scheme, NAMES[stored])
            expected = _states(dense, x_BT)
        with select_experts(model, ["public"], 1):
            difference = _apart(model, _states(model, x_BT), dense, expected)
        del dense, runs, run
        routing, states_BTD = measure_routing(model, x_BT)
        loss, finite = _loss(model, states_BTD, x_BT)
    faults = []
    if not difference <= TOLERANCE:  # a NaN is no pass
        faults.append(
            f"with the public expert alone, logits differ from the anchor's by {difference:.2g} of the largest"
        )
    if broken := routing.broken or (None if finite else "the logits of the vocabulary"):
        faults.append(f"{broken} hold NaN or infinite values")
    if text:
        for n, layer in enumerate(routing.layers):
            if not layer.chooses:
                continue
            largest = max(range(1, len(names)), key=lambda e: layer.share[e])
            if layer.share[largest] > COLLAPSE:
                faults.append(f"in layer {n}, {names[largest]} takes {layer.share[largest]:.1%} of public text")
        if not loss <= WORST_LOSS * loss_anchor:
            faults.append(f"public text costs {loss:.3f} nats per token, the anchor {loss_anchor:.3f}")
    known = (loss_anchor, loss) if text else (None, None)
    return Check(faults, text or "random tokens", x_BT.numel(), difference, routing, *known)


def reference_tokens(anchor: Path, tokenizer: Any, config: Any, length: int = LENGTH) -> tuple[torch.Tensor, str]:
    """Token ids [B, T] of the anchor's reference text, up to 8 windows, and its path; else random ids, "".

    Of a document, no more is read than one window holds: one that is long and odd is not all that there is.
    """
    length = int(min(length, position_limit(getattr(config, "max_position_embeddings", None))))
    path = anchor / SHARED / REFERENCE / "test.jsonl.gz"
    if not path.exists():
        dice = torch.Generator().manual_seed(0)
        return torch.randint(config.vocab_size, (WINDOWS, length), generator=dice), ""
    ids: list[int] = []
    try:
        with gzip.open(path, "rt", encoding="utf-8") as lines:
            for line in islice(lines, 10_000):
                ids += tokenizer(str(json.loads(line)["text"]))["input_ids"][:length]
                if len(ids) >= WINDOWS * length:
                    break
    except (OSError, EOFError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise ModelFolderError(
            f"{path}: cannot be read ({type(error).__name__}: {error}). Copy the anchor again."
        ) from None
    if len(ids) < 2:
        raise ModelFolderError(f"{path}: no text in it. Copy the anchor again.")
    length = min(length, len(ids))
    rows = min(WINDOWS, len(ids) // length)
    return torch.tensor(ids[: rows * length]).view(rows, length), str(path)


def _quantize(dense: Any, scheme: Scheme, dtype: str) -> None:
    """Gives the feed-forward networks of an anchor the values that quantising it leaves."""
    for layer in dense.model.layers:
        for part in FFN:
            weight = layer.mlp.get_submodule(part).weight
            values = scheme.dequantize(*scheme.quantize(weight.detach().cpu().float().numpy(), dtype))
            weight.data = torch.from_numpy(values).to(weight.device)


def in_float32(model: Any, advance: Callable[[float], None] = lambda _amount: None) -> None:
    """Makes a model compute in float32, whatever its weights are stored in; one layer of them is widened at a time.

    `advance` is told the bytes of each layer that has run.

    In float32 as a whole, four experts of a 1B anchor would take 19 GB. As stored they take 9.4, of which transformers
    copies the experts' 8.
    """

    def widen(part: nn.Module, _inputs: Any) -> None:
        for parameter in part.parameters():
            if parameter.is_floating_point():
                stored.append((parameter, parameter.data))
                parameter.data = parameter.data.float()

    def narrow(*_: Any) -> None:
        while stored:
            parameter, data = stored.pop()
            parameter.data = data

    stored: list[tuple[nn.Parameter, torch.Tensor]] = []
    for part in (model.get_input_embeddings(), *model.model.layers, model.model.norm, model.get_output_embeddings()):
        part.register_forward_pre_hook(widen)
        part.register_forward_hook(narrow)
    for layer in model.model.layers:
        layer.register_forward_hook(lambda layer, *_: advance(_nbytes(layer)))


def _nbytes(layer: nn.Module) -> int:
    return sum(parameter.nbytes for parameter in layer.parameters())


@torch.inference_mode()
def _states(model: Any, x_BT: torch.Tensor) -> torch.Tensor:
    """What the output layer reads, [B, T, D]."""
    state_BTD: torch.Tensor = model.model(input_ids=x_BT, use_cache=False).last_hidden_state
    return state_BTD


def _logits(model: Any, state_ND: torch.Tensor) -> Iterator[torch.Tensor]:
    """The logits of N positions, [some of N, V] at a time."""
    head = model.get_output_embeddings()
    for part in torch.split(state_ND, max(1, LOGITS // model.config.vocab_size)):
        yield head(part).float()


@torch.inference_mode()
def _apart(model: Any, found_BTD: torch.Tensor, dense: Any, expected_BTD: torch.Tensor) -> float:
    """The largest difference of the logits of two models, over the largest that is expected of `dense`."""
    difference = largest = torch.zeros((), device=found_BTD.device)
    pairs = zip(_logits(model, found_BTD.flatten(0, 1)), _logits(dense, expected_BTD.flatten(0, 1)), strict=True)
    for found_NV, expected_NV in pairs:
        difference = torch.maximum(difference, found_NV.sub_(expected_NV).abs_().max())  # a NaN stays
        largest = torch.maximum(largest, expected_NV.abs_().max())
    return (difference / largest).item()


@torch.inference_mode()
def _loss(model: Any, state_BTD: torch.Tensor, x_BT: torch.Tensor) -> tuple[float, bool]:
    """Nats per token, mean over the tokens that have another before them; and whether all logits are finite."""
    label_N, nats, finite, first = F.pad(x_BT[:, 1:], (0, 1), value=NO_LABEL).flatten(), 0.0, True, 0
    for logits_NV in _logits(model, state_BTD.flatten(0, 1)):
        finite = finite and bool(logits_NV.isfinite().all())
        part_N = label_N[first : first + len(logits_NV)]
        nats += F.cross_entropy(logits_NV, part_N, ignore_index=NO_LABEL, reduction="sum").item()
        first += len(logits_NV)
    return nats / x_BT[:, 1:].numel(), finite
