"""Lists on a command line, `math,news` or `math, news`: one way to read them."""

from __future__ import annotations

from flexo.errors import UsageError


def comma_list(text: str, option: str) -> list[str]:
    """The names between commas, without the blanks around them.

    Raises `UsageError`, which names the `option`, where a name is missing.
    """
    found = [name.strip() for name in text.split(",")]
    if not all(found):
        raise UsageError(f"{option} {text!r}: expected names between commas, such as math,news, got an empty one.")
    return found
