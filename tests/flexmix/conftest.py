"""A model folder with a chat template, for the tests of this room."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from flexmix.tokens.train_tokenizer import train_tokenizer
from tests.flexmix.chat import OLMO, TALK


@pytest.fixture(scope="session")
def chat_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model folder, as far as text goes, whose tokenizer has the special tokens of a chat, and OLMo's template."""
    folder = tmp_path_factory.mktemp("chat")
    (folder / "config.json").write_text('{"eos_token_id": 0}')
    tokenizer = train_tokenizer([message["content"] for message in TALK] * 5, 300)
    tokenizer.add_special_tokens(["<|im_start|>", "<|im_end|>", "<|user|>", "<|assistant|>"])
    tokenizer.save(str(folder / "tokenizer.json"))
    tokens = {"bos_token": "<|endoftext|>", "eos_token": "<|endoftext|>"}
    (folder / "tokenizer_config.json").write_text(
        json.dumps(tokens | {"tokenizer_class": "PreTrainedTokenizerFast", "model_max_length": 10**6})
    )
    (folder / "chat_template.jinja").write_text(OLMO)
    return folder
