"""Numbers of bytes as people write and read them: 5GB, 500MB. Powers of ten, as disks are sold."""

from __future__ import annotations

import re

import typer

UNITS = {"": 1, "K": 10**3, "M": 10**6, "G": 10**9, "T": 10**12}
LEAST = 10**6


def parse_size(text: str) -> int:
    """The bytes of `5GB`, `1.5 gb` or `5000000000`; raises `typer.BadParameter` for anything else, or under 1 MB."""
    found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([KMGT]?)B?", text.strip().upper(), re.ASCII)
    if not found:
        raise typer.BadParameter(f"{text!r} is no size. Write 5GB, 500MB, or a number of bytes.")
    size = round(float(found[1]) * UNITS[found[2]])
    if size < LEAST:
        raise typer.BadParameter(f"{text!r} is {size} bytes, expected 1MB or more. Is the unit missing, as in 5GB?")
    return size


def size_text(nbytes: int) -> str:
    return f"{nbytes / 1e9:.2f} GB" if nbytes >= 1e9 else f"{nbytes / 1e6:.2f} MB"
