"""Code blocks of a Markdown page: what a reader would type, and which of it no test runs, and why."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
SHELL = ("sh", "console")
FENCE = re.compile(
    r"(?:^<!-- not run: (?P<reason>[^\n]*?) -->\n+)?^```(?P<language>\w*)\n(?P<text>.*?)^```$", re.S | re.M
)
OPERATORS = {"|", "||", "&&", ";", "<", ">", ">>", "(", ")", "&"}


@dataclass(frozen=True)
class Block:
    """A fenced block. `sh` holds commands; `console` commands behind `$ ` and what they printed; `python` a program."""

    page: str
    line: int
    language: str
    text: str
    reason: str | None  # why no test runs it

    def __str__(self) -> str:
        return f"{self.page}:{self.line}"

    @property
    def script(self) -> str:
        """What bash is given."""
        if self.language == "python":
            return f"python - <<'END_OF_PROGRAM'\n{self.text}END_OF_PROGRAM\n"
        return "\n".join(self.commands) + "\n"

    @property
    def commands(self) -> list[str]:
        """The command lines of a shell block, continuations joined, comments left out."""
        lines = self.text.splitlines()
        if self.language == "console":
            lines = list(_typed(lines))
        joined = re.sub(r"\\\n\s*", "", "\n".join(lines)).splitlines()
        return [line for line in joined if line.strip() and not line.lstrip().startswith("#")]

    @property
    def calls(self) -> Iterator[list[str]]:
        """Each program that the block starts, with its arguments."""
        for command in self.commands:
            words = shlex.shlex(command, posix=True, punctuation_chars=True)
            words.whitespace_split = True
            call: list[str] = []
            for word in [*words, ";"]:
                if word in OPERATORS:
                    if call:
                        yield call
                    call = []
                else:
                    call.append(word)


def _typed(lines: list[str]) -> Iterator[str]:
    """The lines of a console block that somebody typed."""
    goes_on = False
    for line in lines:
        if goes_on or line.startswith("$ "):
            yield line.removeprefix("$ ")
            goes_on = line.endswith("\\")


def blocks_of(page: str) -> list[Block]:
    """All fenced blocks of a page of the checkout, from top to bottom."""
    text = (ROOT / page).read_text()
    return [
        Block(page, text.count("\n", 0, found.start("text")), found["language"], found["text"], found["reason"])
        for found in FENCE.finditer(text)
    ]
