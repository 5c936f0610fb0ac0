"""A prompt as the tokens that a model should be given."""

from __future__ import annotations

from transformers import BatchEncoding, PreTrainedModel, PreTrainedTokenizerBase

from flexo.model_config import start_token


def encode_prompt(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, text: str) -> BatchEncoding:
    """`input_ids` and `attention_mask`, each [1, S], on the model's device, for `model.generate`.

    The end-of-text token comes first, as before every document in training: without it, the model is asked to go on
    with a beginning that it has never seen. A tokenizer that puts a token of its own there is left to do so.
    """
    inputs: BatchEncoding = tokenizer(text, return_tensors="pt", return_token_type_ids=False)
    plain = tokenizer(text, add_special_tokens=False)["input_ids"]
    end = start_token(model.config.eos_token_id)
    if end is not None and inputs["input_ids"][0].tolist() == plain:
        for name, first in (("input_ids", end), ("attention_mask", 1)):
            part_1S = inputs[name]
            inputs[name] = part_1S.new_tensor([[first, *part_1S[0].tolist()]])
    return inputs.to(model.device)
