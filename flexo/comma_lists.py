"""Lists on a command line, `math,news` or `math, news`: one way to read them."""

from __future__ import annotations

from flexo.errors import InputError


def comma_list(text: str, option: str) -> list[str]:
    """The names between commas, without the blanks around them.

    Raises `InputError`, which names the `option`, where a name is missing.
    """
    found = [name.strip() for name in text.split(",")]
    if not all(found):
        raise InputError(f"{option} {text!r}: expected names with commas between them, like math,news; one is empty.")
    return found
