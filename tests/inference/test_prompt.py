from __future__ import annotations

from pathlib import Path
from typing import Any

from tokenizers import processors
from transformers import AutoTokenizer

from inference.prompt import encode_prompt
from tests.inference.models import load


def test_a_prompt_starts_like_a_document_in_training(merged: Path) -> None:
    """With the end-of-text token, as `flexmix.tokens.shard` writes documents and `evals.bits` scores them."""
    model, tokenizer = load(merged), AutoTokenizer.from_pretrained(merged)
    inputs = encode_prompt(model, tokenizer, "The cat")
    assert inputs["input_ids"].tolist() == [[tokenizer.eos_token_id, *tokenizer("The cat")["input_ids"]]]
    assert inputs["attention_mask"].tolist() == [[1] * inputs["input_ids"].shape[1]]


def test_a_tokenizer_that_starts_texts_itself_is_left_to_it(merged: Path) -> None:
    model = load(merged)
    tokenizer: Any = AutoTokenizer.from_pretrained(merged)
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        "<|endoftext|> $A", special_tokens=[("<|endoftext|>", tokenizer.eos_token_id)]
    )
    ids = encode_prompt(model, tokenizer, "The cat")["input_ids"][0].tolist()
    assert ids[0] == tokenizer.eos_token_id != ids[1]
    model.config.eos_token_id = [tokenizer.eos_token_id, 5]  # training starts documents with the first of them
    assert encode_prompt(model, AutoTokenizer.from_pretrained(merged), "cat")["input_ids"][0, 0] == ids[0]
    model.config.eos_token_id = None
    tokenizer = AutoTokenizer.from_pretrained(merged)
    assert encode_prompt(model, tokenizer, "cat")["input_ids"].tolist() == [tokenizer("cat")["input_ids"]]
