"""What decides about a preparation, beside the sources and the tokenizer."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from flexmix.documents.corpus import HELD_OUT
from flexmix.documents.source import TASK
from flexo.errors import InputError

Duplicates = Literal["keep", "exact", "near"]


@dataclass(frozen=True)
class Options:
    """What decides about the result, beside the sources and the tokenizer."""

    duplicates: Duplicates = "exact"  # leave out: none, exact copies, or near ones too
    held_out: float = 1 / HELD_OUT  # share of documents for the test split, chosen by their hash
    scrub: bool = False  # blot out e-mail addresses and phone numbers
    task_bytes: int = TASK  # of input for one task, about
    skip_damaged: int | float = 0  # damaged lines that may be set aside: a number, or (float) a share of all

    def __post_init__(self) -> None:
        if not 0 <= self.held_out < 1:
            raise InputError(f"the held-out share is {self.held_out}, expected from 0 up to 1.")
        if self.task_bytes < 1:
            raise InputError(f"the size of a task is {self.task_bytes} bytes, expected at least 1.")
        if self.skip_damaged < 0 or (isinstance(self.skip_damaged, float) and self.skip_damaged >= 1):
            raise InputError(f"skip_damaged is {self.skip_damaged}, expected a number of lines, or a share below 1.")

    def allows(self, damaged: int, lines: int) -> bool:
        """Whether so many damaged lines of so many may be set aside."""
        share = isinstance(self.skip_damaged, float)
        return damaged <= (self.skip_damaged * lines if share else self.skip_damaged)


def parse_skip_damaged(text: str) -> int | float:
    """`20` is a number of lines, `0.01` and `1%` are shares of all; raises `InputError` for anything else."""
    try:
        if text.endswith("%"):
            return float(text[:-1]) / 100
        return float(text) if "." in text else int(text)
    except ValueError:
        raise InputError(f"--skip-damaged {text}: expected a number of lines (20), or a share (0.01 or 1%).") from None
