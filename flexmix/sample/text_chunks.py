"""Tidies a text and cuts it into pieces of bounded size where its author paused: chapters, paragraphs, lines."""

from __future__ import annotations

import html
import re
import unicodedata
from collections.abc import Iterator, Sequence

LONGEST = 20_000
PARAGRAPH = r"\n\n+"
LINE = r"\n"
SENTENCE = r"(?<=[.!?]) "
DEFINITION = r"\n\n(?=(?:@|class |def |async def )\S)"

_UNSEEN = re.compile("[\u0000-\u0008\u000b-\u001f\u007f-\u009f\u200b\u200e\u200f\u2060\ufeff\ufffd\ud800-\udfff]")


def tidy(text: str) -> str:
    """The text in composed Unicode, without control characters, trailing blanks and more than one empty line."""
    text = text.replace("\r\n", "\n").replace("\r", "\n").replace("\u00a0", " ").replace("\u2028", "\n")
    text = _UNSEEN.sub("", unicodedata.normalize("NFC", text))
    text = re.sub(r"[ \t]+\n", "\n", text)
    return re.sub(r"\n{3,}", "\n\n", text).strip("\n ")


def prose(text: str) -> str:
    """Like `tidy`, for text whose spacing means nothing: entities are resolved and runs of blanks become one."""
    return re.sub(r"(?<=\S)[ \t]{2,}", " ", tidy(html.unescape(text)))


def flow(text: str) -> str:
    """The text as one paragraph: every run of white space becomes one blank."""
    return " ".join(text.split())


def pieces(text: str, at: Sequence[str] = (PARAGRAPH, LINE, SENTENCE), longest: int = LONGEST) -> Iterator[str]:
    """Cuts `text` into pieces of at most `longest` UTF-8 bytes at the first pattern of `at` that is fine enough.

    Neighbouring parts are kept together as long as they fit, so that a piece is as long as it may be. A part that no
    pattern divides is cut where it is full. White space at the cuts is dropped, indentation is not.
    """
    if len(text.encode()) <= longest:
        if text.strip():
            yield text.strip("\n").rstrip()
        return
    if not at:
        for start in range(0, len(text), longest // 4):  # a character is at most four bytes
            yield text[start : start + longest // 4]
        return
    held: list[str] = []
    size = 0
    for part in _parts(text, at[0]):
        length = len(part.encode())
        if held and size + length > longest:
            yield from pieces("".join(held), at[1:], longest)
            held, size = [], 0
        held.append(part)
        size += length
    yield from pieces("".join(held), at[1:], longest)


def _parts(text: str, pattern: str) -> Iterator[str]:
    start = 0
    for match in re.finditer(pattern, text):
        yield text[start : match.end()]
        start = match.end()
    if start < len(text):
        yield text[start:]
