"""Token ids of text from a memory of its words, where those are the tokenizer's own, for a process with one core.

    "The cat sat  on it."   ->   "The" " cat" " sat  on" " it."

A text is cut before each single space that stands between two characters that are no white space. GPT-2's way of
splitting and those after it start a new piece there whatever stands around, and merge nothing across pieces: so the ids
of a text are those of its parts, one after the other. Most parts were met before, and only the others are encoded.
"""

from __future__ import annotations

import json
import re
from typing import Any

import numpy as np
import numpy.typing as npt
from tokenizers import Tokenizer
from tokenizers.models import BPE

WORDS = 1 << 17  # in memory, about 30 MB; then it begins anew, for what comes next may be other text
LONGEST = 64  # characters of a word worth remembering
CUT = re.compile(r" (?<=\S )(?=\S)")  # begins with the space, which is quick to look for
CONTRACTIONS = ("(?i:'s|'t|'re|'ve|'m|'ll|'d)", "'(?i:[sdmt]|ll|ve|re)")
CL100K = r"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"


class Words:
    """Encodes texts with a tokenizer that `splits_at_spaces` knows, and remembers."""

    def __init__(self, tokenizer: Tokenizer, dtype: str) -> None:
        self.tokenizer, self.dtype = tokenizer, dtype
        self._known: dict[str, bytes] = {}  # a word without the space before it -> ids with it

    def encode(self, texts: list[str]) -> list[npt.NDArray[np.integer[Any]]]:
        """The ids of each text, as `encode_batch` gives them without special tokens."""
        parts = [CUT.split(text) for text in texts]
        if len(self._known) > WORDS:
            self._known.clear()
        known = self._known
        new = list(dict.fromkeys(word for _, *words in parts for word in words if word not in known))
        encodings = self.tokenizer.encode_batch_fast(
            [*(first for first, *_ in parts), *(" " + word for word in new)], add_special_tokens=False
        )
        ids = [np.array(encoding.ids, self.dtype).tobytes() for encoding in encodings]
        known.update(zip(new, ids[len(texts) :], strict=True))
        joined = [
            b"".join([start, *map(known.__getitem__, words)]) for start, (_, *words) in zip(ids, parts, strict=False)
        ]
        for word in new:
            if len(word) > LONGEST:
                del known[word]
        return [np.frombuffer(data, self.dtype) for data in joined]


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
