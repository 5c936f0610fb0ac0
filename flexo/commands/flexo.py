"""`flexo`: who does what, and all commands under one name.

flexo
flexo merge experts/*.pt -o model/        (the same as flexo-merge)
flexo train-expert +domain=math           (the same as python train_expert.py)
"""

from __future__ import annotations

import sys
from itertools import takewhile

from flexo.commands import start
from flexo.commands.table import COMMANDS, ROLES, Command
from flexo.verbosity import QUIET_FLAGS, VERBOSE_FLAGS


def main() -> None:
    flags, words = _flags(sys.argv[1:])
    if words[:1] == ["help"]:
        words = [*words[1:], "--help"]
    if not words or words[0] in ("-h", "--help"):
        print(overview())
    elif words[0] == "--version":
        from importlib.metadata import version

        print(f"flexo {version('flexo')}")
    else:
        name, *arguments = words
        start(_find(name), f"flexo {name}", [*flags, *arguments])


def overview() -> str:
    """Every command with what it does, by who uses it."""
    width = max(len(command.name) for command in COMMANDS)
    lines = [
        "flexo: federated training of language-model experts",
        "",
        "  flexo COMMAND --help      explains a command; flexo merge and flexo-merge are the same",
        "  flexo --version",
    ]
    for role, does in ROLES.items():
        lines += ["", f"{does}:"]
        lines += [f"  {command.name:{width}}  {command.does}" for command in COMMANDS if command.role == role]
    return "\n".join([*lines, "", "Every command takes -q (only errors on stderr) and -v (more on stderr)."])


def _flags(words: list[str]) -> tuple[list[str], list[str]]:
    """The flags before the command, which are meant for it, and the rest."""
    flags = list(takewhile(lambda word: word in (*QUIET_FLAGS, *VERBOSE_FLAGS), words))
    return flags, words[len(flags) :]


def _find(name: str) -> Command:
    for command in COMMANDS:
        if command.name == name:
            return command
    from difflib import get_close_matches

    near = get_close_matches(name.removeprefix("flexo-").replace("_", "-"), [command.name for command in COMMANDS], n=1)
    hint = f"Did you mean {near[0]!r}? " if near else ""
    sys.stderr.write(f"error: {name!r}: there is no such command. {hint}`flexo` alone lists all of them.\n")
    sys.exit(2)


if __name__ == "__main__":
    main()
