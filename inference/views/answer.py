"""An attributed answer with its text, for people and programs: its JSON, its colours, and text made safe to show."""

from __future__ import annotations

import colorsys
import unicodedata
from dataclasses import asdict, dataclass
from typing import Any

from transformers import PreTrainedTokenizerBase

from inference.attribution import Answer

COUNTED = (
    "Router weights of the active experts of each token and layer, as parts of their sum; every token counts the same, "
    "and so does every layer whose experts differ. Attention and embeddings are the anchor's and are not counted."
)
PUBLIC = (128, 128, 128)
PALETTE = (  # told apart with any kind of colour vision (Okabe and Ito), the yellow darkened to be read as text
    (0, 114, 178), (213, 94, 0), (0, 158, 115), (204, 121, 167), (230, 159, 0), (86, 180, 233), (165, 150, 20),
)  # fmt: skip
DIRECTIONS = "\u061c\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069"  # they reorder text around them
UTF8_BYTES = 4  # of one character, at most

Colour = tuple[int, int, int]


@dataclass(frozen=True)
class Report:
    """One answer: what was asked, what was made, and by which experts."""

    model: str  # name of the folder
    prompt: str
    answer: Answer
    texts: list[str]  # [T], see `TokenText`

    def to_dict(self) -> dict[str, Any]:
        """Everything, for JSON. Layers are lists of (expert, router weight), the greatest first.

        `chooses` says by layer whether its experts differ; shares are means over those that do.
        """
        answer = self.answer
        experts = [
            {"index": index} | asdict(expert) | {"share": answer.shares[expert.domain]}
            for index, expert in enumerate(answer.experts)
        ]
        tokens = [
            {"id": token, "text": text, "shares": shares, "layers": [_active(weights) for weights in layers]}
            for token, text, shares, layers in zip(
                answer.tokens, self.texts, answer.share_TE.tolist(), answer.weight_TLE.tolist(), strict=True
            )
        ]
        return {
            "format": "flexo.attribution", "version": 1, "model": self.model, "prompt": self.prompt,
            "text": "".join(self.texts), "counted": COUNTED, "experts": experts, "chooses": answer.chooses,
            "tokens": tokens,
        }  # fmt: skip


def _active(weights: list[float]) -> list[tuple[int, float]]:
    return [(expert, weight) for expert, weight in ranked(weights) if weight > 0]


def ranked(values: list[float]) -> list[tuple[int, float]]:
    """Numbered values, the greatest first."""
    return sorted(enumerate(values), key=lambda item: -item[1])


class TokenText:
    """The text of tokens that come one by one: "" for one that ends within a character, all of it for the next."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self._tokenizer, self._pending = tokenizer, list[int]()

    def add(self, token: int) -> str:
        self._pending.append(token)
        text = str(self._tokenizer.decode(self._pending, skip_special_tokens=True))
        if text.endswith("\ufffd") and len(self._pending) < UTF8_BYTES:
            return ""
        self._pending.clear()
        return text

    def rest(self) -> str:
        """What is left of a character that was never finished."""
        return str(self._tokenizer.decode(self._pending, skip_special_tokens=True))


def token_texts(tokenizer: PreTrainedTokenizerBase, tokens: list[int]) -> list[str]:
    """The text of each token, in all the text of the answer."""
    text = TokenText(tokenizer)
    texts = [text.add(token) for token in tokens]
    texts[-1] += text.rest()
    return texts


def visible(text: str) -> str:
    r"""Text that does nothing to a terminal or a page: control characters as `\x1b`, line ends and tabs kept."""
    return "".join(
        char.encode("unicode_escape").decode()
        if char not in "\n\t" and (unicodedata.category(char) in ("Cc", "Cs") or char in DIRECTIONS)
        else char
        for char in text
    )


def colour(expert: int) -> Colour:
    """Red, green and blue, 0 to 255, of the expert of that number; grey for the public one."""
    if expert <= len(PALETTE):
        return PALETTE[expert - 1] if expert else PUBLIC
    red, green, blue = colorsys.hls_to_rgb(expert * 0.618 % 1, 0.5, 0.6)  # the golden ratio keeps neighbours apart
    return round(255 * red), round(255 * green), round(255 * blue)
