"""Documents to token shards: a folder of memory-mapped token ids with document boundaries, written once and cached.

    tokens.bin       ids, uint16 or uint32, documents back to back; every document starts with the end-of-text token
    documents.npy    int64 [documents + 1], where each document starts, and the end
    shard.json       counts, the tokenizer's digest, the id of the end-of-text token

The end-of-text token that starts a document is at once the label that ends the one before, and the first real token has
something to be predicted from.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from tokenizers import Tokenizer

from flexmix.corpus import read_documents, require_file
from flexmix.kept import keep
from merge.console import progress
from merge.errors import InputError
from merge.files import sha256_file

VERSION = 1
BATCH = 512  # documents handed to the tokenizer at once

Ids = npt.NDArray[np.integer[Any]]


@dataclass(frozen=True)
class TokenShard:
    """A tokenised corpus file, mapped from disk."""

    folder: Path
    documents: int
    tokens: int  # the end-of-text tokens included
    text_bytes: int  # UTF-8 bytes of the documents
    empty: int  # documents without text, left out
    end_of_text: int
    tokenizer_digest: str
    dtype: str
    version: int = VERSION

    @cached_property
    def ids(self) -> Ids:
        """Token ids [tokens], read-only and mapped."""
        return np.memmap(self.folder / "tokens.bin", dtype=self.dtype, mode="r", shape=(self.tokens,))

    @cached_property
    def starts(self) -> npt.NDArray[np.int64]:
        """Where each document starts [documents + 1], in tokens."""
        starts: npt.NDArray[np.int64] = np.load(self.folder / "documents.npy")
        return starts


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
    end = end[0] if isinstance(end, list) and end else end
    if not isinstance(end, int) or not 0 <= end < tokenizer.get_vocab_size():
        raise InputError(f"{config}: eos_token_id is {end!r}, expected the end-of-text token's id.")
    return tokenizer, end


def prepare_shard(source: Path, model: Path, cache: Path) -> TokenShard:
    """Tokenises a corpus file with a model folder's tokenizer, or finds it done.

    Args:
        source: a `.jsonl` or `.jsonl.gz` file.
        model: the folder with `tokenizer.json` and `config.json`.
        cache: where shards are kept, in a folder named after the digests of file and tokenizer.

    Raises:
        InputError: the file is unreadable, or holds fewer than two documents with text.
    """
    require_file(source)
    tokenizer, end = load_tokenizer(model)
    digest = sha256_file(model / "tokenizer.json")
    key = hashlib.sha256(f"{VERSION} {sha256_file(source)} {digest} {end}".encode()).hexdigest()[:16]
    folder = cache / f"{source.name.removesuffix('.gz').removesuffix('.jsonl')}-{key}"
    keep(folder, lambda partial: _write(source, tokenizer, end, digest, partial))
    about = json.loads((folder / "shard.json").read_text(encoding="utf-8"))
    return TokenShard(folder=folder, **about)


def _write(source: Path, tokenizer: Tokenizer, end: int, digest: str, folder: Path) -> None:
    dtype = "uint16" if tokenizer.get_vocab_size() <= 1 << 16 else "uint32"
    starts, text_bytes, empty = [0], 0, 0
    with (folder / "tokens.bin").open("wb") as file, progress(f"tokenising {source.name}", None) as advance:
        for batch in _batches(read_documents(source), BATCH):
            texts = [text for text in batch if text.strip()]
            empty += len(batch) - len(texts)
            size = sum(len(text.encode()) for text in texts)
            for encoding in tokenizer.encode_batch_fast(texts, add_special_tokens=False):
                np.array([end, *encoding.ids], dtype=dtype).tofile(file)
                starts.append(starts[-1] + 1 + len(encoding.ids))
            text_bytes += size
            advance(size)
    documents = len(starts) - 1
    if documents < 2:
        found = "no document with text" if documents == 0 else "a single document"
        raise InputError(
            f"{source}: {found} in it, expected at least two, one JSON object a line. "
            "Split a long text into its parts: chapters, articles, records."
        )
    np.save(folder / "documents.npy", np.array(starts, dtype=np.int64))
    shard = TokenShard(folder, documents, starts[-1], text_bytes, empty, end, digest, dtype)
    about = {name: value for name, value in asdict(shard).items() if name != "folder"}
    (folder / "shard.json").write_text(json.dumps(about, indent=2) + "\n")


def _batches(texts: Iterable[str], size: int) -> Iterator[list[str]]:
    texts = iter(texts)
    while batch := list(islice(texts, size)):
        yield batch
