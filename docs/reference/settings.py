"""Reference pages of the settings: every value in `configs/`, with the comment that stands beside it in its YAML."""

from __future__ import annotations

import re
from pathlib import Path

import yaml

from flexo.config_dir import config_dir
from trainers.setting_help import SCRIPTS, Config, Setting, leading_comments, read_config

LAUNCHERS = "hydra/launcher"
# groups that a script's list of defaults does not name, because one has to be asked for, or another group takes them in
ASKED_FOR = {"train_expert": ("domain", "flexmix"), "run_study": ("recipes",)}
NOT_FOR = {("train_anchor", "experiment")}  # experiments change settings that an anchor's run does not have
VERBATIM = ("flexmix", "recipes")  # data in YAML rather than settings that somebody gives on the command line
ONE = r"\+?[a-z_./]+=[^\s,;)]+(?:,[^\s,;)]+)*"  # name=value, +group=one,another
GIVEN = re.compile(rf"(?<!\S)((?:python \S+ (?:-m )?)?{ONE}(?: {ONE})*)")


def pages() -> dict[str, str]:
    """Markdown by the path of its page: one for each script, and one for the launchers."""
    made = {f"reference/settings/{script}.md": _script_page(script) for script in SCRIPTS}
    return made | {"reference/settings/launchers.md": _launcher_page()}


def _script_page(script: str) -> str:
    path = config_dir() / f"{script}.yaml"
    config = read_config(path)
    parts = [
        f"# `{script}.py`",
        _introduction(path),
        "Write `name=value` to change a setting and `group=choice` to take another choice. In each group below, the "
        "choice taken by default comes first.",
        "## Settings of the script itself",
        _table(config.settings),
    ]
    for group, chosen in config.groups.items():
        parts += _group(group, chosen, script)
    for group in ASKED_FOR.get(script, ()):
        parts += _group(group, "null", script, plus="+")
    return "\n\n".join(parts) + "\n"


def _launcher_page() -> str:
    about = (
        "A multirun, `python train_expert.py -m +domain=math,news,code`, starts its runs one after the other on this "
        "machine. A launcher makes SLURM jobs of them instead: [cluster.md](../../cluster.md)."
    )
    return "\n\n".join(["# Launchers", about, *_group(LAUNCHERS, "null", "")]) + "\n"


def _introduction(path: Path) -> str:
    """What the script's `--help` says above its settings; its commands, indented there by two, become a block."""
    text = yaml.safe_load(path.read_text())["hydra"]["help"]["template"].partition("== Groups")[0]
    return "\n".join("  " + line if line.startswith("  ") else line for line in text.splitlines()).strip()


def _group(group: str, default: str, script: str, plus: str = "") -> list[str]:
    """The section of one group: the choice by default, then the others that fit the script."""
    others = {name.removeprefix("train_") for name in SCRIPTS} - {script.removeprefix("train_")}
    files = sorted((config_dir() / group).glob("*.yaml"))
    configs = [read_config(path) for path in files if path.stem not in others]
    configs.sort(key=lambda config: config.path.stem != default)
    if not configs or (script, group) in NOT_FOR:
        return []
    parts = [f"## `{group}`"]
    if group in VERBATIM:
        for config in configs:
            parts += [f"### `{config.choice}`", _prose(config.about), f"```yaml\n{_without_top(config.path)}\n```"]
        return parts
    if default == "null":
        parts.append(f"Nothing is chosen by default. `{plus}{group}=NAME` takes one of these:")
    for alike in _alike(configs):
        if len(configs) > 1 or default == "null":
            note = " (default)" if alike[0].path.stem == default else ""
            parts.append("### " + ", ".join(f"`{plus}{config.choice}`" for config in alike) + note)
        parts += _choice(alike)
    return parts


def _alike(configs: list[Config]) -> list[list[Config]]:
    """Choices that differ in nothing but their name, such as the domains, together."""
    found: dict[tuple[Setting, ...], list[Config]] = {}
    for config in configs:
        found.setdefault(_named(config), []).append(config)
    return list(found.values())


def _named(config: Config) -> tuple[Setting, ...]:
    """The settings of a choice, with NAME where its own name stands."""
    return tuple(
        Setting(setting.name, "NAME" if setting.value == config.path.stem else setting.value, setting.comment)
        for setting in config.settings
    )


def _choice(alike: list[Config]) -> list[str]:
    abouts = [_prose(config.about) for config in alike if config.about]
    parts = ["\n".join(f"* {about}" for about in abouts) if len(alike) > 1 else "".join(abouts)]
    if takes := sorted({name for config in alike for name in config.takes}):
        parts.append("Takes the settings of " + ", ".join(f"`{name}`" for name in takes) + ", and sets:")
    settings = list(_named(alike[0])) if len(alike) > 1 else alike[0].settings
    if settings:
        parts.append(_table(settings))
    return [part for part in parts if part]


def _without_top(path: Path) -> str:
    lines = path.read_text().splitlines()
    return "\n".join(lines[leading_comments(lines) :])


def _table(settings: list[Setting]) -> str:
    rows = ['<div class="settings" markdown>', "", "| setting | default | meaning |", "|---|---|---|"]
    for setting in settings:
        value = f"`{_cell(setting.value)}`" if setting.value else ""
        rows.append(f"| `{setting.name}` | {value} | {_cell(_prose(setting.comment))} |")
    return "\n".join([*rows, "", "</div>"])


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


def _prose(comment: str) -> str:
    """A comment as Markdown: settings such as `model=dense` as code, and nothing taken for a tag."""
    parts = comment.split("`")
    parts[::2] = [GIVEN.sub(r"`\1`", part).replace("<", "\\<") for part in parts[::2]]
    return "`".join(parts)
