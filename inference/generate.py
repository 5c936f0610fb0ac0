"""One prompt continued: the text on standard output as it is made and, where asked for, which experts made it."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from flexo.atomic_files import new_file
from flexo.errors import InputError
from inference.attribution import attribute
from inference.prompt import encode_prompt
from inference.select import select_experts
from inference.views.answer import Report, token_texts
from inference.views.html_page import page
from inference.views.terminal import ColourStreamer, PlainStreamer, print_shares


@dataclass(frozen=True)
class Sampling:
    """How tokens are chosen; temperature 0 takes the likeliest."""

    max_new_tokens: int
    temperature: float
    top_p: float
    seed: int

    def options(self) -> dict[str, Any]:
        """Keywords of transformers' generate."""
        if self.temperature == 0:
            return {"max_new_tokens": self.max_new_tokens, "do_sample": False}
        chosen = {"temperature": self.temperature, "top_p": self.top_p, "top_k": 0}
        return {"max_new_tokens": self.max_new_tokens, "do_sample": True} | chosen


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
    inputs = encode_prompt(model, tokenizer, prompt)
    length, limit = inputs["input_ids"].shape[1], getattr(model.config, "max_position_embeddings", math.inf)
    if length + sampling.max_new_tokens > limit:
        raise InputError(
            f"{length} tokens of prompt and {sampling.max_new_tokens} new ones: this model was made for {limit} in "
            "all. Shorten the prompt or pass a smaller --max-new-tokens."
        )
    torch.manual_seed(sampling.seed)
    run: Any = model
    with ExitStack() as stack:
        stack.enter_context(torch.inference_mode())
        if experts is not None:
            stack.enter_context(select_experts(model, experts))
        partials = [stack.enter_context(new_file(path)) for path in files]  # refused before the work, not after it
        streamer: Any = PlainStreamer(tokenizer)
        record = stack.enter_context(attribute(model)) if coloured or files else None
        if coloured and record:
            streamer = ColourStreamer(tokenizer, prompt, record)
        x_BS = run.generate(**inputs, streamer=streamer, **sampling.options())
        if not record:
            return
        (answer,) = record.answers(x_BS, length)
        report = Report(
            Path(str(model.name_or_path)).resolve().name, prompt, answer, token_texts(tokenizer, answer.tokens)
        )
        for path, partial in zip(files, partials, strict=True):
            text = page(report) if path.suffix == ".html" else json.dumps(report.to_dict(), indent=1)
            partial.write_text(text, encoding="utf-8")
    if coloured:
        print_shares(answer)
