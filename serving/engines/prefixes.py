"""Prompts that begin alike share cached blocks, but never across tenants or sets of experts.

What a block holds depends on the experts that were used: shared between sets, a cache gives wrong answers and gives
away what others asked. Here a block is known by a keyed digest of all tokens up to its end. The key is of this process
and of one tenant and one set, so nobody can make the digest of another's block, and 32 bytes do not collide.
"""

from __future__ import annotations

import hashlib
import secrets
from array import array
from collections.abc import Callable, Sequence
from typing import Any

Owner = tuple[str, Sequence[bool]]  # a tenant, and the experts that may be used


class PrivatePrefixes:
    """Takes the place of two methods of transformers' cache: looking a prefix up, and remembering full blocks.

    Args:
        cache: a `PagedAttentionCache` whose blocks may be shared.
        owner: of a request; None if it must neither find blocks nor leave any.
        found: told how many tokens of a request were in the cache.
    """

    def __init__(self, cache: Any, owner: Callable[[str], Owner | None], found: Callable[[str, int], None]) -> None:
        (self._blocks,) = cache.cache_allocators.values()
        self._secret, self._owner, self._found = secrets.token_bytes(32), owner, found
        cache.search_prefix_match, cache.mark_complete_blocks = self.search, self.remember

    def search(self, request: str, tokens: list[int]) -> int:
        """The number of tokens at the beginning that need not be computed; their blocks are the request's now."""
        size: int = self._blocks.tokens_per_page
        ledger, matched = self._blocks.ledger, list[int]()
        if (owner := self._owner(request)) is None:
            return 0
        digest = self._start(owner)
        for start in range(0, len(tokens) - size, size):  # at least one token is left to compute
            digest = _next(digest, tokens[start : start + size])
            if (block := ledger.hash_to_block.get(digest)) is None:
                break
            matched.append(block)
        if matched:
            self._blocks.acquire_prefix_blocks(request, len(matched) * size, matched)
        self._found(request, len(matched) * size)
        return len(matched) * size

    def remember(self, state: Any, complete: dict[str, int]) -> None:
        """Makes known the blocks that the last pass filled. Blocks of the same content stay as they are."""
        table, ledger = self._blocks.block_table.get(state.request_id), self._blocks.ledger
        if not complete or table is None or (owner := self._owner(state.request_id)) is None:
            return
        tokens, size = state.initial_tokens + state.generated_tokens, self._blocks.tokens_per_page
        left = max(complete.values())
        digest = self._start(owner)
        for place, block in enumerate(table):
            known = ledger.block_to_hash.get(block)
            digest = known or _next(digest, tokens[place * size : (place + 1) * size])
            if known is None:
                if not left or (place + 1) * size > len(tokens):
                    return
                left -= 1
                if ledger.register_new_hash(block, digest) is not None:  # somebody else's pass filled one first
                    return

    def _start(self, owner: Owner) -> bytes:
        tenant, allowed = owner
        return hashlib.blake2b(repr((tenant, list(allowed))).encode(), key=self._secret, digest_size=32).digest()


def _next(before: bytes, tokens: list[int]) -> bytes:
    return hashlib.blake2b(array("q", tokens).tobytes(), key=before, digest_size=32).digest()
