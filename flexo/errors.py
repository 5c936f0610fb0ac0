"""What every command says when it refuses its input: one message that a person can act on."""

from collections.abc import Sequence
from difflib import get_close_matches


class InputError(Exception):
    """Input from outside is unusable: a file, a folder, a setting, a text.

    The message says what is wrong and where, what was expected and what was found, and what to do. Commands print it
    alone and exit with 1, having written nothing. A mistake of our own is an assertion, never an `InputError`.
    """


class UsageError(InputError):
    """Arguments that contradict each other, or one that lacks another; commands exit with 2."""


class ExpertFileError(InputError):
    """An expert file is damaged, foreign, hostile, or was trained against another anchor."""


class ModelFolderError(InputError):
    """A model folder is not what its place needs: not OLMo-2, not FlexOlmo, incomplete, or altered."""


def refuse_unknown(names: Sequence[str], known: Sequence[str], where: str) -> None:
    """Raises `InputError`, with the nearest match, for the first of `names` that is not among `known`."""
    for name in names:
        if name not in known:
            near = get_close_matches(name, known, n=1)
            hint = f" Did you mean {near[0]!r}?" if near else ""
            raise InputError(f"{name!r}: no such expert in {where}. It has {', '.join(known)}.{hint}")
