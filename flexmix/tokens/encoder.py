"""The one place where text becomes token ids, for whoever writes token shards."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt
from tokenizers import Tokenizer

from flexmix.tokens.word_cache import Words, splits_at_spaces
from flexo.atomic_files import sha256_file
from flexo.errors import InputError
from flexo.model_config import start_token

STRETCH = 1 << 20  # characters handed to the tokenizer at once, about; a longer document is cut for it

Ids = npt.NDArray[np.integer[Any]]
Lengths = npt.NDArray[np.int64]
Item = TypeVar("Item")


@dataclass(frozen=True)
class Encoder:
    """A tokenizer and the token that starts each document."""

    tokenizer: Tokenizer
    end_of_text: int
    digest: str  # sha256 of tokenizer.json
    words: Words | None = None  # gives the same ids, quicker on one core

    @property
    def dtype(self) -> str:
        """Of token ids on disk."""
        return "uint16" if self.tokenizer.get_vocab_size() <= 1 << 16 else "uint32"

    def encode(self, texts: list[str]) -> tuple[Ids, Lengths]:
        """Token ids of documents back to back, each after an end-of-text token, and the length of each.

        A document longer than `STRETCH` characters is encoded stretch by stretch, which bounds memory. Stretches end
        where byte-level tokenizers split anyway (see `stretches`), so for them the tokens are those of the whole.
        """
        flat = ((n, part) for n, text in enumerate(texts) for part in stretches(text, STRETCH))
        end, lengths = np.array([self.end_of_text], self.dtype), np.zeros(len(texts), np.int64)
        runs: list[Ids] = []
        for batch in batches(flat, len(texts), lambda item: len(item[1])):
            for (n, _), ids in zip(batch, self._ids([part for _, part in batch]), strict=True):
                runs += [ids] if lengths[n] else [end, ids]
                lengths[n] += len(ids) if lengths[n] else 1 + len(ids)
        return np.concatenate(runs) if runs else end[:0], lengths

    def _ids(self, texts: list[str]) -> list[Ids]:
        if self.words is not None:
            return self.words.encode(texts)
        encodings = self.tokenizer.encode_batch_fast(texts, add_special_tokens=False)
        return [np.array(encoding.ids, self.dtype) for encoding in encodings]


def load_encoder(model: Path, one_core: bool = False) -> Encoder:
    """The tokenizer of a model folder, ready to encode; raises `InputError` like `load_tokenizer`.

    With `one_core` it remembers words, if the tokenizer is of a kind that allows it; the ids are the same.
    """
    tokenizer, end = load_tokenizer(model)
    encoder = Encoder(tokenizer, end, sha256_file(model / "tokenizer.json"))
    if not (one_core and splits_at_spaces(tokenizer)):
        return encoder
    return replace(encoder, words=Words(tokenizer, encoder.dtype))


def load_tokenizer(folder: Path) -> tuple[Tokenizer, int]:
    """The tokenizer of a model folder, and the id of its end-of-text token.

    Text that spells a special token is encoded as plain text: a document cannot end itself.
    """
    try:
        tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    except Exception as error:  # the Rust side raises bare Exception for missing and malformed files alike
        raise InputError(f"{folder / 'tokenizer.json'}: not a readable tokenizer ({error}).") from None
    tokenizer.encode_special_tokens = True
    tokenizer.no_truncation()
    tokenizer.no_padding()
    config = folder / "config.json"
    try:
        end = json.loads(config.read_text(encoding="utf-8"))["eos_token_id"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(f"{config}: no eos_token_id to be read from it ({error}).") from None
    start = start_token(end)
    if start is None or start >= tokenizer.get_vocab_size():
        raise InputError(f"{config}: eos_token_id is {end!r}, expected the end-of-text token's id.")
    return tokenizer, start


def stretches(text: str, size: int) -> Iterator[str]:
    """Cuts a text into stretches of `size` / 2 to `size` characters that together are the text.

    A cut is made after a single line break, or else before a single space, between two characters that are no white
    space; GPT-2's way of splitting words and those after it never join across these. Text without such places is cut
    anywhere.
    """
    first = 0
    while len(text) - first > size:
        cut = _cut(text, first + size // 2, first + size)
        yield text[first:cut]
        first = cut
    yield text[first:] if first else text


def _cut(text: str, low: int, high: int) -> int:
    for mark, after in (("\n", 1), (" ", 0)):
        at = high
        while (at := text.rfind(mark, low, at)) > low:
            if not text[at - 1].isspace() and not text[at + 1].isspace():
                return at + after
    return high


def batches(items: Iterable[Item], size: int, characters: Callable[[Item], int]) -> Iterator[list[Item]]:
    """Lists of up to `size` items and `STRETCH` characters, which take little memory; a longer item comes alone."""
    batch: list[Item] = []
    room = STRETCH
    for item in items:
        length = characters(item)
        if batch and (len(batch) == size or length > room):
            yield batch
            batch, room = [], STRETCH
        batch.append(item)
        room -= length
    if batch:
        yield batch
