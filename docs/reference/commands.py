"""Reference pages of the commands: what `--help` says of each, all options, and the examples."""

from __future__ import annotations

import importlib
import re
import tomllib
from pathlib import Path
from types import ModuleType

import typer
from typer.cli import get_docs_for_click
from typer.main import get_command

ROOT = Path(__file__).resolve().parents[2]
FOLDER = "reference/commands"
# every command has these two; the index says so once
COMPLETION = re.compile(r"^\* `--(install|show)-completion`.*\n", re.MULTILINE)
# Typer lists a group's commands with their help cut short, and then each of them in full
CUT_SHORT = re.compile(r"^\*\*Commands\*\*:\n\n(\* .*\n)+\n", re.MULTILINE)
EXAMPLES = re.compile(r"(?:^`[^`\n]+`\n\n)*^`[^`\n]+`$", re.MULTILINE)
ABOUT = """# Commands

Each page shows what `--help` of the command prints. All of them have `-h` for help, and `--install-completion` and
`--show-completion` for the shell. Exit codes: 0 done, 1 the input was refused (one message, nothing written),
2 wrong usage, 130 and 143 stopped. Training runs and the study are scripts under Hydra: their settings have
[pages of their own](../settings/train_expert.md).

| command | does |
|---|---|
"""


def commands() -> dict[str, typer.Typer]:
    """The Typer app of every command that the package installs, by name, in the order of pyproject.toml."""
    scripts = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["scripts"]
    return {name: _app(importlib.import_module(place.partition(":")[0])) for name, place in scripts.items()}


def _app(module: ModuleType) -> typer.Typer:
    found = [value for value in vars(module).values() if isinstance(value, typer.Typer)]
    assert len(found) == 1, f"{module.__name__} holds {len(found)} Typer apps, expected the one of its command"
    return found[0]


def pages() -> dict[str, str]:
    """Markdown by the path of its page: one for each command, and a list of them."""
    apps = commands()
    made = {f"{FOLDER}/{name}.md": _page(name, app) for name, app in apps.items()}
    rows = [f"| [`{name}`]({name}.md) | {_first_sentence(made[f'{FOLDER}/{name}.md'])} |" for name in apps]
    return {f"{FOLDER}/index.md": ABOUT + "\n".join(rows) + "\n"} | made


def _page(name: str, app: typer.Typer) -> str:
    command = get_command(app)
    text = get_docs_for_click(obj=command, ctx=typer.Context(command, info_name=name), name=name)
    text = CUT_SHORT.sub("", COMPLETION.sub("", text))
    return EXAMPLES.sub(_as_block, text)


def _as_block(found: re.Match[str]) -> str:
    """Paragraphs that are a command each, as one block of code."""
    lines = [line.strip("`") for line in found[0].split("\n\n")]
    return "```bash\n" + "\n".join(lines) + "\n```"


def _first_sentence(page: str) -> str:
    text = page.split("\n\n")[1]
    return " ".join(re.split(r"(?<=\.) ", text, maxsplit=1)[0].split())
