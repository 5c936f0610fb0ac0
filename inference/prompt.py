"""A prompt as the tokens that a model should be given."""

from __future__ import annotations

import torch
from transformers import BatchEncoding, PreTrainedModel, PreTrainedTokenizerBase

from flexo.model_config import start_token


def encode_prompt(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, text: str) -> BatchEncoding:
    """`input_ids` and `attention_mask`, each [1, S], on the model's device, for `model.generate`.

    The end-of-text token comes first, as before every document in training: without it, the model is asked to go on
    with a beginning that it has never seen. A tokenizer that puts a token of its own there is left to do so.
    """
    ids_1S = torch.tensor([prompt_tokens(tokenizer, text, model.config.eos_token_id)])
    return BatchEncoding({"input_ids": ids_1S, "attention_mask": torch.ones_like(ids_1S)}).to(model.device)


def prompt_tokens(tokenizer: PreTrainedTokenizerBase, text: str, end: object) -> list[int]:
    """The tokens of `encode_prompt`, for a model whose end-of-text token is `end`."""
    tokens: list[int] = tokenizer(text)["input_ids"]
    first = start_token(end)
    return tokens if first is None or tokenizer.num_special_tokens_to_add() else [first, *tokens]


def added_tokens(tokenizer: PreTrainedTokenizerBase, end: object) -> int:
    """How many of `prompt_tokens` are not of the text."""
    return tokenizer.num_special_tokens_to_add() or int(start_token(end) is not None)
