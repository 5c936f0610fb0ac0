"""Names of experts as people type them."""

from __future__ import annotations

from collections.abc import Sequence
from difflib import get_close_matches

from merge.errors import InputError


def refuse_unknown(names: Sequence[str], known: Sequence[str], where: str) -> None:
    """Raises `InputError`, with the nearest match, for the first of `names` that is not among `known`."""
    for name in names:
        if name not in known:
            near = get_close_matches(name, known, n=1)
            hint = f" Did you mean {near[0]!r}?" if near else ""
            raise InputError(f"{name!r}: no such expert in {where}. It has {', '.join(known)}.{hint}")
