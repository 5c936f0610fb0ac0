"""Breaks long lines of Markdown: paragraphs and list items with a line over 120 characters are filled anew.

    python tests/docs/wrap_markdown.py docs/*.md

Code, tables and headings stay as they are, and so do paragraphs whose lines are short enough.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path
from textwrap import TextWrapper

LONGEST, FILLED = 120, 118
BULLET = re.compile(r"(?P<indent>\s*)(?P<bullet>(?:[*+-]|\d+\.)\s+)?")
APART = re.compile(r"\s*(?:$|[|#<!])")  # blank lines, tables, headings, HTML and pictures are paragraphs of their own
FENCE = re.compile(r"\s*(?:```|~~~)")
CODE = re.compile(r"`[^`]{1,70}`")  # is not broken


def wrapped(text: str) -> str:
    """The text with its long paragraphs filled; the words stay the same."""
    done: list[str] = []
    paragraph: list[str] = []
    in_code = False
    for line in [*text.split("\n"), ""]:
        fence = bool(FENCE.match(line))
        indented = line.startswith("    ") and not paragraph
        if in_code or fence or indented or APART.match(line) or re.match(r"\s*(?:[*+-]|\d+\.)\s", line):
            done += _fill(paragraph)
            paragraph = []
        if in_code or fence or indented or APART.match(line):
            done.append(line)
        else:
            paragraph.append(line)
        in_code ^= fence
    return "\n".join(done[:-1])


def long_lines(text: str) -> list[str]:
    """Lines that are too long, tables and blocks of code aside."""
    without_code = re.sub(r"^```.*?^```", "", text, flags=re.S | re.M)
    return [line for line in without_code.splitlines() if len(line) > LONGEST and not line.lstrip().startswith("|")]


def _fill(lines: list[str]) -> list[str]:
    if max(map(len, lines), default=0) <= LONGEST:
        return lines
    begin = BULLET.match(lines[0])
    assert begin
    first = begin["indent"] + (begin["bullet"] or "")
    words = " ".join([lines[0][len(first) :].strip(), *map(str.strip, lines[1:])])
    wrapper = TextWrapper(
        FILLED, initial_indent=first, subsequent_indent=" " * len(first), break_long_words=False, break_on_hyphens=False
    )
    kept = CODE.sub(lambda code: code[0].replace(" ", "\0"), words)
    return [line.replace("\0", " ") for line in wrapper.wrap(kept)]


def main(names: list[str]) -> None:
    for path in map(Path, names):
        path.write_text(wrapped(path.read_text()))


if __name__ == "__main__":
    main(sys.argv[1:])
