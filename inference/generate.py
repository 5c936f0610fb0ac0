"""One prompt continued: as a text with what made it, or on standard output as it is made.

made = generate("model", "What is 7 + 8?", experts=["public", "math"])
made.text, made.report.answer.shares                          # " 15", {"public": 0.31, "math": 0.69}
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import BatchEncoding, PreTrainedModel, PreTrainedTokenizerBase

from flexo.atomic_files import new_file
from flexo.errors import InputError
from inference.attribution import Attribution, attribute
from inference.load import load_model
from inference.prompt import encode_prompt
from inference.select import select_experts
from inference.views.answer import Report, token_texts
from inference.views.html_page import page
from inference.views.terminal import ColourStreamer, PlainStreamer, print_shares
from merge.formats.manifest import MANIFEST


@dataclass(frozen=True)
class Sampling:
    """How tokens are chosen; temperature 0 takes the likeliest."""

    max_new_tokens: int = 100
    temperature: float = 0.0
    top_p: float = 1.0  # mass that is sampled from, the likeliest tokens first
    seed: int = 0

    def options(self) -> dict[str, Any]:
        """Keywords of transformers' generate."""
        if self.temperature == 0:
            return {"max_new_tokens": self.max_new_tokens, "do_sample": False}
        chosen = {"temperature": self.temperature, "top_p": self.top_p, "top_k": 0}
        return {"max_new_tokens": self.max_new_tokens, "do_sample": True} | chosen


@dataclass(frozen=True)
class Generated:
    """What a model made of a prompt."""

    text: str  # without the prompt
    report: Report | None  # which experts made each token; None of a model that no merge made


def generate(
    model: Path | str,
    prompt: str,
    *,
    experts: Sequence[str] | None = None,
    sampling: Sampling = Sampling(),
    dtype: str = "auto",
    device: str = "auto",
) -> Generated:
    """Loads a model folder and continues one prompt; for several, load once and see `inference.load`.

    Args:
        model: a merged folder, or another causal language model.
        prompt: the text to go on with.
        experts: domains to use; None uses all.
        sampling: how tokens are chosen.
        dtype, device: as in `load_model`.

    Raises:
        InputError: no whole model, too long a prompt, or unknown experts.
    """
    loaded, tokenizer = load_model(Path(model), dtype, device)
    inputs = _fitting(loaded, tokenizer, prompt, sampling)
    with _running(loaded, experts, attributed=(Path(model) / MANIFEST).exists()) as record:
        x_1S = _sampled(loaded, inputs, sampling)
        report = None if record is None else _report(loaded, tokenizer, prompt, record, x_1S, inputs)
    made = x_1S[0, inputs["input_ids"].shape[1] :]
    return Generated(str(tokenizer.decode(made, skip_special_tokens=True)), report)


def continue_prompt(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompt: str,
    sampling: Sampling,
    experts: Sequence[str] | None = None,
    coloured: bool = False,
    files: Sequence[Path] = (),
) -> None:
    """Prints a prompt and what `model` makes of it.

    Args:
        experts: domains to use; None uses all.
        coloured: show the expert behind each token, and the shares below.
        files: new files for the same, `.html` or `.json`.

    Raises:
        InputError: too long a prompt, unknown experts, a file that exists, attribution of a model that is not merged.
    """
    inputs = _fitting(model, tokenizer, prompt, sampling)
    with ExitStack() as stack:
        partials = [stack.enter_context(new_file(path)) for path in files]  # refused before the work, not after it
        record = stack.enter_context(_running(model, experts, coloured or bool(files)))
        streamer: Any = PlainStreamer(tokenizer)
        if coloured and record:
            streamer = ColourStreamer(tokenizer, prompt, record)
        x_1S = _sampled(model, inputs, sampling, streamer)
        if not record:
            return
        report = _report(model, tokenizer, prompt, record, x_1S, inputs)
        for path, partial in zip(files, partials, strict=True):
            text = page(report) if path.suffix == ".html" else json.dumps(report.to_dict(), indent=1)
            partial.write_text(text, encoding="utf-8")
    if coloured:
        print_shares(report.answer)


def _fitting(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, prompt: str, sampling: Sampling
) -> BatchEncoding:
    """The prompt's tokens, [1, S]; raises `InputError` where the continuation would not fit behind them."""
    inputs = encode_prompt(model, tokenizer, prompt)
    length, limit = inputs["input_ids"].shape[1], getattr(model.config, "max_position_embeddings", math.inf)
    if length + sampling.max_new_tokens > limit:
        raise InputError(
            f"{length} tokens of prompt and {sampling.max_new_tokens} new ones: this model was made for {limit} in "
            "all. Shorten the prompt or pass a smaller --max-new-tokens."
        )
    return inputs


@contextmanager
def _running(model: PreTrainedModel, experts: Sequence[str] | None, attributed: bool) -> Iterator[Attribution | None]:
    """The model with these experts alone; yields the record of what they do, if it is `attributed`."""
    with ExitStack() as stack:
        stack.enter_context(torch.inference_mode())
        if experts is not None:
            stack.enter_context(select_experts(model, experts))
        yield stack.enter_context(attribute(model)) if attributed else None


def _sampled(model: Any, inputs: BatchEncoding, sampling: Sampling, streamer: Any = None) -> torch.Tensor:
    """Prompt and continuation, [1, S]."""
    torch.manual_seed(sampling.seed)
    x_1S: torch.Tensor = model.generate(**inputs, streamer=streamer, **sampling.options())
    return x_1S


def _report(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompt: str,
    record: Attribution,
    x_1S: torch.Tensor,
    inputs: BatchEncoding,
) -> Report:
    (answer,) = record.answers(x_1S, inputs["input_ids"].shape[1])
    name = Path(str(model.name_or_path)).resolve().name
    return Report(name, prompt, answer, token_texts(tokenizer, answer.tokens))
