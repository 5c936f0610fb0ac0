from __future__ import annotations

from typing import Any

import yaml

from merge.card import model_card


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
    assert row.count(" | ") == 4 and "<script>" not in row and "\\|" in row
    assert front_matter(card)["license"] == "it's: [odd] # 'yes'"


def test_several_licences_are_other() -> None:
    several = manifest()
    several["experts"].append(several["experts"][1] | {"licence": "Apache-2.0"})
    assert front_matter(model_card(several, "model"))["license"] == "other"
