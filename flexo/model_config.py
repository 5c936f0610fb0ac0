"""Values of a model's `config.json` that rooms read for themselves and must read alike."""

from __future__ import annotations

import math
from typing import Any


def start_token(eos_token_id: Any) -> int | None:
    """The end-of-text token that starts each document, in training and in prompts alike: of a list, the first.

    Args:
        eos_token_id: as in `config.json`; None or anything that is no id gives None.
    """
    first = eos_token_id[0] if isinstance(eos_token_id, list) and eos_token_id else eos_token_id
    return first if type(first) is int and first >= 0 else None


def position_limit(max_position_embeddings: Any) -> float:
    """How many positions a model is made for; infinity where `config.json` names none, or -1 as some exports do."""
    given = max_position_embeddings
    return given if type(given) is int and given > 0 else math.inf
