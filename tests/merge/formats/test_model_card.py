from __future__ import annotations

from typing import Any

import yaml

from merge.formats.model_card import model_card


def manifest(**fields: Any) -> dict[str, Any]:
    expert = {"index": 1, "domain": "math", "title": "Maths", "licence": "MIT", "training": {"tokens": 1234567}}
    public = {"index": 0, "domain": "public", "title": "the anchor's own"}
    return {"top_k": 2, "anchor": {"name": "a", "digest": "0" * 64}, "experts": [public, expert | fields]}


def front_matter(card: str) -> dict[str, Any]:
    found: dict[str, Any] = yaml.safe_load(card.split("---\n")[1])
    return found


def test_the_card_names_experts_licences_and_commands() -> None:
    card = model_card(manifest(), "model")
    assert "| 1 | math | Maths | MIT | 1,234,567 |" in card
    assert "flexo-generate model/" in card and "--experts public,math" in card
    assert front_matter(card)["license"] == "mit"


def test_text_of_strangers_cannot_break_the_card() -> None:
    card = model_card(manifest(title="a | b <script> \\", licence="it's: [odd] # 'yes'"), "model")
    row = next(line for line in card.splitlines() if line.startswith("| 1 |"))
    assert row.count(" | ") == 5 and "<script>" not in row and "\\|" in row
    assert front_matter(card)["license"] == "it's: [odd] # 'yes'"


def test_several_licences_are_other() -> None:
    several = manifest()
    several["experts"].append(several["experts"][1] | {"licence": "Apache-2.0"})
    assert front_matter(model_card(several, "model"))["license"] == "other"


def test_the_card_of_a_trained_router_says_on_what_and_what_leaving_is_then() -> None:
    made = manifest(file="math.pt") | {"tensors": {"a": "0" * 64}}
    made["experts"].append(made["experts"][1] | {"index": 2, "domain": "code"})
    card = model_card(made, "model")
    assert "no training and no data went into" in card
    assert "`flexo-optout model/ --drop code -o smaller/`" in card and "as if it had never been merged" in card
    text = {name: {"share": share} for name, share in (("public", 0.5), ("math", 0.3), ("code", 0.2), ("\x1b[2J", 0))}
    card = model_card(made | {"router_training": {"text": text, "tokens": 81920}}, "model")
    assert "trained on 81,920 tokens of public text, 50% public, 30% math, 20% code (documents like" in card
    assert "\x1b" not in card and "The rows that stay were made with it there" in card and "never been" not in card
    assert "The rows that stay" in model_card(made | {"router_training": {"kind": "moments"}}, "model")
    assert "trained on public text; nothing else was" in model_card(made | {"router_training": {"tokens": 5}}, "model")


def test_the_card_promises_no_exact_leaving_where_there_is_none() -> None:
    """Of whole models whose shared weights were averaged, of tensors that nothing was compared with, of one expert."""
    one = manifest(file="math.pt") | {"tensors": {"a": "0" * 64}}
    second = one["experts"][1] | {"index": 2, "domain": "code"}
    for experts, tensors in ((one["experts"], one["tensors"]), ([*one["experts"], second], None)):
        assert "flexo-optout" not in model_card(one | {"experts": experts, "tensors": tensors}, "model")
    assert "flexo-optout" not in model_card(one | {"experts": [*one["experts"], manifest()["experts"][1]]}, "model")
