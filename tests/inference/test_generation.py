"""What transformers makes of a merged folder, without any code of ours."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from tests.inference.models import load

X = torch.randint(1, 96, (1, 7), generator=torch.Generator().manual_seed(1))


def test_pipeline_goes_on_with_a_text(merged: Path) -> None:
    from transformers import pipeline

    made = pipeline("text-generation", str(merged))("The cat", max_new_tokens=12, do_sample=False)
    text = made[0]["generated_text"]
    assert text.startswith("The cat") and len(text) > len("The cat")


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_greedy_text_is_the_same_with_static_and_dynamic_cache(merged: Path, attention: str) -> None:
    model = load(merged, attn_implementation=attention)
    options: dict[str, Any] = {"max_new_tokens": 40, "min_new_tokens": 40, "do_sample": False}
    dynamic = model.generate(X, **options)
    assert dynamic.shape == (1, 47) and len(set(dynamic[0].tolist())) > 10
    assert torch.equal(model.generate(X, cache_implementation="static", **options), dynamic)
    assert torch.equal(model.generate(X, use_cache=False, **options), dynamic)


def test_greedy_text_is_the_likeliest_token_each_time(merged: Path) -> None:
    model = load(merged)
    made = model.generate(X, max_new_tokens=20, min_new_tokens=20, do_sample=False, cache_implementation="static")
    with torch.no_grad():
        logits = model(made).logits[0]
    logits[:, model.config.eos_token_id] = -torch.inf  # as min_new_tokens does
    assert made[0, 7:].tolist() == logits[6:-1].argmax(-1).tolist()


def test_prompts_of_a_padded_batch_do_not_see_each_other(merged: Path) -> None:
    from transformers import AutoTokenizer

    model, tokenizer = load(merged), AutoTokenizer.from_pretrained(merged, padding_side="left")
    prompts = ["The cat sat on", "x"]
    batch = tokenizer(prompts, return_tensors="pt", padding=True, return_token_type_ids=False)
    options: dict[str, Any] = {"max_new_tokens": 15, "min_new_tokens": 15, "do_sample": False}
    together = model.generate(**batch, **options)
    for row, prompt in enumerate(prompts):
        single = tokenizer(prompt, return_tensors="pt", return_token_type_ids=False)
        assert together[row, -15:].tolist() == model.generate(**single, **options)[0, -15:].tolist()
