"""Token ids of text from a memory of its words, where those are the tokenizer's own, for a process with one core.

    "The cat's sat, it\nran 2x."   ->   "The" " cat" "'s" " sat" "," " it" "\n" "ran" " 2x" "."

A text is cut before a space that something else follows, behind an ASCII letter or digit where other ASCII comes, and
behind a line break that stands alone. GPT-2's way of splitting and those after it start a new piece at each of these
places whatever stands around, cut the parts as they cut the whole, and merge nothing across pieces: so the ids of a
text are those of its parts, one after the other. Most parts were met before, and only the others are encoded.
"""

from __future__ import annotations

import json
import re
from itertools import chain
from typing import Any

import numpy as np
import numpy.typing as npt
from tokenizers import Tokenizer
from tokenizers.models import BPE

WORDS = 1 << 17  # in memory, about 30 MB; then it begins anew, for what comes next may be other text
LONGEST = 64  # characters of a word worth remembering
PLAIN, OTHER = "[0-9A-Za-z]", r"[^0-9A-Za-z\s]"
BODY = rf"{OTHER}*+(?:{PLAIN}++[^\x00-\x7f\s]{OTHER}*+)*+"  # no white space; no ASCII word in it ends before ASCII
BLANK = r"\n(?=\S)|\s+(?= [!-/:-~])|\s+\Z"  # white space at whose end is a place to cut; digits may be split off first
JOINT = rf"(?!{BLANK}| \S)\s++"  # ... and at whose end is none
PART = re.compile(
    rf" ?{PLAIN}++(?![^\x00-\x7f])"  # most words, quickly
    rf"|(?: (?=\S))?(?:{BODY}{JOINT})*+{BODY}(?:{PLAIN}++|{BLANK}|)"
)
CONTRACTIONS = ("(?i:'s|'t|'re|'ve|'m|'ll|'d)", "'(?i:[sdmt]|ll|ve|re)")
CL100K = r"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"


class Words:
    """Encodes texts with a tokenizer that `splits_at_spaces` knows, and remembers."""

    def __init__(self, tokenizer: Tokenizer, dtype: str) -> None:
        self.tokenizer, self.dtype = tokenizer, dtype
        self._added = [token.content for token in tokenizer.get_added_tokens_decoder().values() if not token.special]
        self._known: dict[str, bytes] = {}  # a part, with the space before it -> ids

    def encode(self, texts: list[str]) -> list[npt.NDArray[np.integer[Any]]]:
        """The ids of each text, as `encode_batch` gives them without special tokens."""
        split = [self._parts(text) for text in texts]
        if len(self._known) > WORDS:
            self._known.clear()
        known = self._known
        new = list(set(chain.from_iterable(split)) - known.keys())
        encodings = self.tokenizer.encode_batch_fast(new, add_special_tokens=False)
        known.update(
            (part, np.array(encoding.ids, self.dtype).tobytes()) for part, encoding in zip(new, encodings, strict=True)
        )
        ids = [np.frombuffer(b"".join(map(known.__getitem__, parts)), self.dtype) for parts in split]
        for part in new:
            if len(part) > LONGEST:
                del known[part]
        return ids

    def _parts(self, text: str) -> list[str]:
        """A text with a token in it that was added as it stands is left whole: a cut may be inside."""
        return [text] if any(token in text for token in self._added) else PART.findall(text)


def splits_at_spaces(tokenizer: Tokenizer) -> bool:
    """Whether a tokenizer is of a kind known to start a new piece at each cut: byte-level BPE as in GPT-2 or cl100k.

    Its added tokens may stand in text (those that are no special tokens), so none may reach over a space.
    """
    if tokenizer.normalizer is not None or not isinstance(tokenizer.model, BPE) or tokenizer.model.dropout:
        return False
    added = [token for token in tokenizer.get_added_tokens_decoder().values() if not token.special]
    if any(re.search(r"\s", token.content) or token.lstrip or token.rstrip or token.single_word for token in added):
        return False
    if tokenizer.pre_tokenizer is None:
        return False
    about = json.loads(tokenizer.pre_tokenizer.__getstate__())
    *before, last = about["pretokenizers"] if about["type"] == "Sequence" else [about]
    splits = [step for step in before if step["type"] != "Digits"]
    return (
        last["type"] == "ByteLevel"
        and not last["add_prefix_space"]
        and all(_is_cl100k(step) for step in splits)
        and len(splits) == (0 if last["use_regex"] else 1)
    )


def _is_cl100k(step: dict[str, Any]) -> bool:
    if step["type"] != "Split" or (step["behavior"], step["invert"]) not in (("Isolated", False), ("Removed", True)):
        return False
    pattern = step["pattern"].get("Regex", "")
    return pattern.endswith(CL100K) and pattern.removesuffix(CL100K) in CONTRACTIONS
