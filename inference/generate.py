"""One prompt continued, for programs: the text, and which experts made it.

    made = generate("model", "What is 7 + 8?", experts=["public", "math"])
    made.text, made.answer.shares                             # " 15", {"public": 0.31, "math": 0.69, "news": 0.0}

`inference.views` shows both to people.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from flexo.errors import InputError
from flexo.model_config import position_limit
from inference.attribution import Answer, Attribution, attribute
from inference.load import load_model
from inference.prompt import encode_prompt
from inference.select import select_experts
from merge.formats.manifest import MANIFEST


@dataclass(frozen=True)
class Sampling:
    """How tokens are chosen; temperature 0 takes the likeliest."""

    max_new_tokens: int = 100
    temperature: float = 0.0
    top_p: float = 1.0  # mass of the likeliest tokens that are sampled from
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
    answer: Answer | None  # which experts made each token; None of a model that no merge made


def generate(
    model: Path | str,
    prompt: str,
    *,
    experts: Sequence[str] | None = None,
    sampling: Sampling = Sampling(),
    dtype: str = "auto",
    device: str = "auto",
) -> Generated:
    """Loads a model folder and continues one prompt; for several prompts, `load_model` once and call its `generate`.

    Args:
        model: a merged folder, or another causal language model.
        prompt: the text to go on with.
        experts: domains to use; None uses all.
        sampling: how tokens are chosen.
        dtype, device: as in `load_model`.

    Raises:
        InputError: no whole model, too long a prompt, or unknown experts.
    """
    loaded, tokenizer = load_model(model, dtype, device)
    merged = (Path(model) / MANIFEST).exists()
    made_T, answer = continued(loaded, tokenizer, prompt, sampling, experts, merged)
    return Generated(str(tokenizer.decode(made_T, skip_special_tokens=True)), answer)


def continued(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompt: str,
    sampling: Sampling,
    experts: Sequence[str] | None,
    attributed: bool,
    streamer: Callable[[Attribution | None], Any] = lambda _record: None,
) -> tuple[torch.Tensor, Answer | None]:
    """The tokens [T] that `model` puts behind a prompt, and the experts that made them, if they are to be `attributed`.

    `streamer` makes what transformers tells the tokens as they are made, from the record of the experts.

    Raises:
        InputError: too long a prompt, unknown experts, or attribution of a model that no merge made.
    """
    inputs = encode_prompt(model, tokenizer, prompt)
    length, limit = inputs["input_ids"].shape[1], position_limit(getattr(model.config, "max_position_embeddings", None))
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
        record = stack.enter_context(attribute(model)) if attributed else None
        x_1S = run.generate(**inputs, streamer=streamer(record), **sampling.options())
        answer = record.answers(x_1S, length)[0] if record else None
    return x_1S[0, length:], answer
