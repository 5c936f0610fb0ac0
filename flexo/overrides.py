"""A setting of a training script, written so that the shell and Hydra both take it as it is meant."""

from __future__ import annotations

import re
import shlex

PLAIN = re.compile(r"[A-Za-z_./][\w./+-]*", re.ASCII)  # what Hydra's grammar takes without quotes
WORDS = ("null", "true", "false", "nan", "inf")  # that it takes for something else than text


def override(name: str, *values: object) -> str:
    """`name=value` for a command line: `'domain.train="a (1)/x.jsonl"'` for the path `a (1)/x.jsonl`.

    Several values are those of a multirun.
    """
    return shlex.quote(f"{name}={','.join(_text(str(value)) for value in values)}")


def _text(value: str) -> str:
    if PLAIN.fullmatch(value) and value.lower() not in WORDS:
        return value
    return '"' + re.sub(r'(\\*)("|$)', _escaped, value) + '"'


def _escaped(quote: re.Match[str]) -> str:
    """A quote, or the end, with the backslashes before it, which are doubled there alone."""
    return quote[1] * 2 + (f"\\{quote[2]}" if quote[2] else "")
