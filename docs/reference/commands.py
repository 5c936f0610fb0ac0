"""Reference pages of the commands: what `--help` says of each, all options, and the examples."""

from __future__ import annotations

import importlib
import re
from types import ModuleType

import typer
from typer.cli import get_docs_for_click
from typer.main import get_command

from flexo.commands.table import COMMANDS, ROLES

FOLDER = "reference/commands"
# every command has these two; the index says so once
COMPLETION = re.compile(r"^\* `--(install|show)-completion`.*\n", re.MULTILINE)
# Typer lists a group's commands with their help cut short, and then each of them in full
CUT_SHORT = re.compile(r"^\*\*Commands\*\*:\n\n(\* .*\n)+\n", re.MULTILINE)
EXAMPLES = re.compile(r"(?:^`[^`\n]+`\n\n)*^`[^`\n]+`$", re.MULTILINE)
ABOUT = """# Commands

Each page shows what `--help` of the command prints. `flexo merge` and `flexo-merge` are the same, and so for all of
them. All have `-h` for help, and `--install-completion` and `--show-completion` for the shell. Exit codes: 0 done,
1 the input was refused (one message, nothing written), 2 wrong usage, 130 and 143 stopped. Training runs and the study
are scripts under Hydra: their settings have [pages of their own](../settings/train_expert.md).
"""


def commands() -> dict[str, typer.Typer]:
    """The Typer app of every command by the name of its console script."""
    return {
        command.program: _app(importlib.import_module(command.module)) for command in COMMANDS if not command.script
    }


def _app(module: ModuleType) -> typer.Typer:
    found = [value for value in vars(module).values() if isinstance(value, typer.Typer)]
    assert len(found) == 1, f"{module.__name__} holds {len(found)} Typer apps, expected the one of its command"
    return found[0]


def pages() -> dict[str, str]:
    """Markdown by the path of its page: a list of all commands, and one page for each."""
    made = {f"{FOLDER}/{name}.md": _page(name, app) for name, app in sorted(commands().items())}
    return {f"{FOLDER}/index.md": ABOUT + _list()} | made


def _list() -> str:
    """All commands by who uses them, as `flexo` alone prints them."""
    parts: list[str] = []
    for role, does in ROLES.items():
        parts += ["", f"## {does}", "", "| command | does |", "|---|---|"]
        for command in COMMANDS:
            if command.role == role:
                page = f"../settings/{command.script}.md" if command.script else f"{command.program}.md"
                shown = f"{command.script}.py" if command.script else command.program
                parts.append(f"| [`{shown}`]({page}) | {command.does} |")
    return "\n".join([*parts, ""])


def _page(name: str, app: typer.Typer) -> str:
    command = get_command(app)
    text = get_docs_for_click(obj=command, ctx=typer.Context(command, info_name=name), name=name)
    text = CUT_SHORT.sub("", COMPLETION.sub("", text))
    return EXAMPLES.sub(_as_block, text)


def _as_block(found: re.Match[str]) -> str:
    """Paragraphs that are a command each, as one block of code."""
    lines = [line.strip("`") for line in found[0].split("\n\n")]
    return "```bash\n" + "\n".join(lines) + "\n```"
