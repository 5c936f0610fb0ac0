"""Commands in the documentation are ones that there are, with options and settings that there are."""

from __future__ import annotations

import importlib
import re
import tomllib
from collections.abc import Iterator
from typing import Any

import pytest
import typer
from hydra import compose, initialize_config_dir
from hydra.errors import HydraException

from flexo.config_dir import config_dir
from tests.docs.blocks import ROOT, SHELL, Block, blocks_of

PAGES = [
    "README.md",
    *sorted(f"docs/{path.name}" for path in (ROOT / "docs").glob("*.md")),
]
SCRIPTS = ("train_anchor.py", "train_expert.py", "train_router.py", "run_study.py")
PROGRAMS = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["scripts"]
ROOMS = ("merge", "federation", "flexmix", "trainers", "inference", "serving", "evals")


def calls(block: Block) -> Iterator[list[str]]:
    """Calls of our own programs, without placeholders."""
    for words in block.calls:
        while words and re.fullmatch(r"\w+=.*", words[0]):  # variables before a command
            words = words[1:]
        if words[:1] == ["python"] and words[1:2] and words[1] in SCRIPTS:
            words = words[1:]
        if words and (words[0] in SCRIPTS or words[0].startswith("flexo-")):
            yield [word for word in words if word != "..."]


def app_of(program: str) -> Any:
    module = program.replace("-", "_")
    (room,) = (room for room in ROOMS if (ROOT / room / "commands" / f"{module}.py").exists())
    found = vars(importlib.import_module(f"{room}.commands.{module}")).values()
    return typer.main.get_command(next(value for value in found if isinstance(value, typer.Typer)))


def parse(command: Any, program: str, arguments: list[str]) -> None:
    """Raises what the command line would: an unknown option, a missing argument, a value that is none."""
    context = command.make_context(program, list(arguments))
    if hasattr(command, "resolve_command"):
        rest = [*context._protected_args, *context.args]
        name, subcommand, rest = command.resolve_command(context, rest)
        subcommand.make_context(name, rest, parent=context)


def one_of_each(words: list[str]) -> list[str]:
    """The settings of the first run of a multirun."""
    if "-m" not in words:
        return words
    return [re.sub(r"^([\w+./]+=[^,\[{]+),.*", r"\1", word) for word in words if word != "-m"]


@pytest.mark.parametrize("page", PAGES)
def test_programs_and_options_exist(page: str) -> None:
    wrong = []
    for block in blocks_of(page):
        for program, *arguments in calls(block) if block.language in SHELL else ():
            if program in SCRIPTS:
                continue
            if program not in PROGRAMS:
                wrong.append(f"{block}: no program {program}")
                continue
            try:
                parse(app_of(program), program, arguments)
            except Exception as error:  # click's own, or a parser's of ours
                wrong.append(f"{block}: {program} {' '.join(arguments)}: {error}")
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize("page", PAGES)
def test_settings_exist(page: str) -> None:
    wrong = []
    with initialize_config_dir(str(config_dir()), version_base="1.3"):
        for block in blocks_of(page):
            for program, *settings in calls(block) if block.language in SHELL else ():
                if program in SCRIPTS:
                    try:
                        compose(program.removesuffix(".py"), one_of_each(settings))
                    except HydraException as error:
                        wrong.append(f"{block}: {program} {' '.join(settings)}: {error}")
    assert not wrong, "\n".join(wrong)


def test_the_readme_names_every_command() -> None:
    text = (ROOT / "README.md").read_text()
    assert not [name for name in [*PROGRAMS, *SCRIPTS] if f"`{name}" not in text]


@pytest.mark.parametrize("page", PAGES)
def test_shell_blocks_are_fenced(page: str) -> None:
    """An indented block has no language, so nothing here would look at it."""
    text = re.sub(r"^```.*?^```$", "", (ROOT / page).read_text(), flags=re.S | re.M)
    indented = re.findall(r"^ {4}(?:\$ )?(?:flexo-\w|python \w|make \w|pip \w|sbatch |bash ).*", text, re.M)
    assert not indented, f"{page}: put ```sh around {indented}"


@pytest.mark.parametrize("line", ["flexo-merge a.pt --otuput x", "flexo-mrege a.pt -o x", "flexo-data prepare -o x"])
def test_a_wrong_command_is_found(line: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(f"{__name__}.blocks_of", lambda page: [Block(page, 1, "sh", line + "\n", None)])
    with pytest.raises(AssertionError, match=r"page\.md:1"):
        test_programs_and_options_exist("page.md")


def test_a_wrong_setting_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    line = "python train_expert.py +domain=math optimizer.larning_rate=1\n"
    monkeypatch.setattr(f"{__name__}.blocks_of", lambda page: [Block(page, 1, "sh", line, None)])
    with pytest.raises(AssertionError, match="larning_rate"):
        test_settings_exist("page.md")
