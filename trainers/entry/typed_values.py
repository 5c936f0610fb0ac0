"""Values as people type them, before Hydra reads them: `~` is their home, and what Hydra's grammar refuses gets quotes.

Hydra takes `=`, `,`, `(`, `#`, `'`, `~` and letters that are not Latin for its own grammar, or for nothing at all.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hydra._internal.utils import get_args_parser
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override, ValueType
from hydra.errors import HydraException

from flexo.errors import InputError
from flexo.overrides import override

HOME = re.compile(r"(?<=[=,:\[ ])~(?=/|,|$)")  # where a value begins


def readable(arguments: Sequence[str], usage: str) -> list[str]:
    """The arguments of a command line as Hydra can read them.

    Args:
        arguments: as they were typed, for Hydra alone.
        usage: what stands before them.

    Raises:
        InputError: Hydra would not read one of them, or take one path for several. It has the whole command, in quotes.
    """
    given = get_args_parser().parse_args(list(arguments))
    words = list(arguments)
    for n, word in enumerate(words):
        if word not in given.overrides or "=" not in word:
            continue
        name, _, value = word.partition("=")
        found = _parsed(word)
        if isinstance(found, HydraException) and HOME.search(word):
            words[n] = HOME.sub(lambda _tilde: str(Path.home()), word)
            found, value = _parsed(words[n]), words[n].partition("=")[2]
        if isinstance(found, HydraException):
            why = f"{word}: {' '.join(str(found).split())}. Hydra takes such a sign for its own unless it is in quotes"
            if value.startswith(("[", "{")) and not Path(value).exists():
                raise InputError(f"{why}: put double ones around each text of the list, and single ones around all.")
            better = _command(usage, words, n, _as_text(name, value, given))
            raise InputError(f"{why}, and the shell takes one pair for itself: {better}")
        if found.value_type == ValueType.SIMPLE_CHOICE_SWEEP:
            one = _command(usage, words, n, override(name, value))
            if given.multirun and Path(value).exists():
                raise InputError(f"{word}: a file or folder that is there, which -m would take for several. {one}")
            if not given.multirun:
                raise InputError(f"{word}: several values are several runs, which takes -m. For one text: {one}")
    return words


def at_home(value: Any) -> Any:
    """A setting with `~` at the beginning of its texts expanded, as in quoted paths."""
    if isinstance(value, str) and re.match(r"~(/|$)", value):
        return str(Path(value).expanduser())
    if isinstance(value, dict):
        return {name: at_home(part) for name, part in value.items()}
    return [at_home(part) for part in value] if isinstance(value, list) else value


def _parsed(word: str) -> Override | HydraException:
    try:
        return OverridesParser.create().parse_override(word)
    except HydraException as error:
        return error


def _as_text(name: str, value: str, given: Any) -> str:
    """The setting with a value in quotes; under `-m` each of several, unless all together are one path."""
    several = given.multirun and "," in value and not Path(value).exists()
    return override(name, *(value.split(",") if several else [value]))


def _command(usage: str, words: Sequence[str], n: int, better: str) -> str:
    return " ".join([usage, *map(shlex.quote, words[:n]), better, *map(shlex.quote, words[n + 1 :])])
