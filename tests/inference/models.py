"""Merged folders for the tests of this room and of evals."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from merge.planning.merge_plan import execute
from tests.merge.tools import even_plan

DOMAINS = ("math", "news", "code")


def merge_domains(
    make_expert: Callable[..., Path], output: Path, domains: Sequence[str] = DOMAINS, top_k: int | None = None
) -> Path:
    """A merged folder of experts for the tiny anchor, the same experts each time."""
    execute(even_plan([make_expert(domain) for domain in domains], top_k=top_k), output)
    return output


def load(folder: Path, **options: Any) -> Any:
    """A model in evaluation mode."""
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(folder, **options).eval()
