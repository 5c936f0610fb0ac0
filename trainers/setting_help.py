"""Every setting of a root script, with its default and the comment that stands beside it in `configs/`.

    for setting in reference("train_expert"):
        print(setting.name, setting.value, setting.comment)

`--help` of the root scripts is made here (`help_text`). Pages of documentation are made of `read_config`.
"""

from __future__ import annotations

import shutil
import string
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import hydra
import yaml
from hydra.core.config_loader import ConfigLoader
from hydra.core.global_hydra import GlobalHydra
from hydra.core.object_type import ObjectType
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.types import RunMode
from omegaconf import OmegaConf

from flexo.config_dir import config_dir

SCRIPTS = ("train_anchor", "train_expert", "train_router", "run_study")
DOMAIN, LAUNCHER = "domain", "hydra/launcher"
APART = {  # groups that no list of defaults names: they are chosen on the command line alone
    DOMAIN: "whose text it is; there is no default, so it takes a plus: +domain=NAME",
    LAUNCHER: "how the runs of a multirun (-m) are started; basic: here, one after the other",
}
HYDRAS_OWN = ("defaults", "hydra")
GLOBAL = "_global_"  # the package of a file that sets more than its own section
WIDEST, COLUMN = 120, 36  # characters of a line, and of what stands before its comment, at most
LOADER: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


@dataclass(frozen=True)
class Setting:
    """One setting, or a section of them, or a group of which a choice is made."""

    name: str  # dotted, as it is given on the command line
    value: str  # as it is written in its file; "" of a section
    comment: str  # beside it, or on the line above; "" where there is none
    choice: str = ""  # what brings it, such as model=dense; "": it is there by default
    choices: tuple[str, ...] = ()  # of a group


@dataclass(frozen=True)
class Config:
    """One YAML file of `configs/`."""

    path: Path
    package: str  # the section that its settings are in, dotted; "" for all of them
    about: str  # the comment at its top
    settings: list[Setting]
    groups: dict[str, str]  # chosen in its list of defaults: {"data": "expert", "experiment": "null"}
    beside: dict[str, str]  # the comments there
    takes: list[str]  # files whose settings it takes over and then changes

    @property
    def choice(self) -> str:
        """What chooses it on the command line: `data=expert`."""
        return f"{self.path.parent.relative_to(config_dir())}={self.path.stem}"


def read_config(path: Path, package: str | None = None) -> Config:
    """The settings of one file, in its order, without what it says to Hydra itself.

    Args:
        path: of the file.
        package: the section that its settings are in; None: what the file says, or else the name of its group.
    """
    text = path.read_text(encoding="utf-8")
    lines = text.splitlines()
    top = [line.removeprefix("#").strip() for line in lines[: leading_comments(lines)]]
    group = path.parent.relative_to(config_dir()).as_posix()
    if package is None:
        package = next((line.split()[1] for line in top if line.startswith("@package")), group.replace("/", "."))
        package = "" if package in (GLOBAL, ".") else package
    groups: dict[str, str] = {}
    beside: dict[str, str] = {}
    takes: list[str] = []
    settings: list[Setting] = []
    root = yaml.compose(text, LOADER)
    if isinstance(root, yaml.MappingNode):
        for entry in next((value.value for key, value in root.value if key.value == "defaults"), ()):
            mapping = isinstance(entry, yaml.MappingNode)
            name, chosen = (part.value for part in entry.value[0]) if mapping else ("", entry.value)
            if name.startswith("/"):
                takes.append(f"{name.strip('/').partition('@')[0]}={chosen}")
            elif name and not name.startswith("override "):
                groups[name], beside[name] = chosen, _comment(lines, entry.value[0][1].end_mark)
            elif not name and chosen != "_self_":
                takes.append(f"{group}={chosen}")
        root.value = [pair for pair in root.value if pair[0].value not in HYDRAS_OWN]
        settings = list(_settings(root, text, lines, f"{package}." if package else ""))
    about = " ".join(line for line in top if not line.startswith("@package"))
    return Config(path, package, about, settings, groups, beside, takes)


def leading_comments(lines: Sequence[str]) -> int:
    """How many lines at the top are comments."""
    return next((n for n, line in enumerate(lines) if not line.startswith("#")), len(lines))


def _comment(lines: Sequence[str], mark: Any) -> str:
    """What stands behind a place as a comment; "" if nothing does."""
    behind = lines[mark.line][mark.column :].removeprefix(":").strip() if mark.line < len(lines) else ""
    return behind.removeprefix("#").strip() if behind.startswith("#") else ""


def _settings(node: yaml.MappingNode, text: str, lines: Sequence[str], prefix: str) -> Iterator[Setting]:
    top = leading_comments(lines)
    for key, value in node.value:
        name = prefix + key.value
        section = isinstance(value, yaml.MappingNode) and not value.flow_style
        above = lines[key.start_mark.line - 1].strip() if key.start_mark.line > top else ""
        comment = _comment(lines, key.end_mark if section else value.end_mark)
        if not comment and above.startswith("#"):
            comment = above.removeprefix("#").strip()
        if not section:
            yield Setting(name, text[value.start_mark.index : value.end_mark.index], comment)
        else:
            if comment:
                yield Setting(name, "", comment)
            yield from _settings(value, text, lines, f"{name}.")


def reference(script: str) -> list[Setting]:
    """Groups and settings of a root script in the order of its help; at the end those that other choices bring.

    A setting in a section within a section (`domain.hub.id`) has the comment of its section if it has none of its own.
    """
    needed = ["+domain=local"] if script == "train_expert" else []
    with _loader() as loader:
        composed = _compose(loader, script, needed)
        groups = _groups(loader, composed)
        found = {setting.name: setting for setting in _leaves(composed)}
        for group in groups:
            for choice in (f"{group.name}={name}" for name in group.choices):
                overrides = [f"+{choice}"] if group.name == DOMAIN else [*needed, choice]
                for setting in _leaves(_compose(loader, script, overrides)):
                    found.setdefault(setting.name, replace(setting, choice=choice))
    return [*groups, *(found[name] for name in found if name not in {group.name for group in groups})]


def help_text(script: str, overrides: Sequence[str] = (), width: int | None = None) -> str:
    """The help of a root script: its template, with its groups and its settings in their places.

    Args:
        script: its name.
        overrides: of the command line. Settings are shown as they are with them.
        width: of a line, in characters; None: that of the terminal, at most 120.

    Raises what Hydra raises for overrides that do not compose.
    """
    width = width or min(WIDEST, shutil.get_terminal_size((WIDEST, 24)).columns)
    with _loader() as loader:
        composed = _compose(loader, script, overrides)
        groups = [(f"{group.name}: {', '.join(group.choices)}", group.comment) for group in _groups(loader, composed)]
    return string.Template(composed.hydra.help.template).substitute(
        APP_CONFIG_GROUPS=_aligned(groups, width), CONFIG=_aligned(list(_lines(composed)), width)
    )


@dataclass(frozen=True)
class _Composed:
    """A root script's settings as Hydra composes them, and what their files say of each."""

    script: str
    overrides: list[str]
    values: dict[str, Any]  # without Hydra's own
    said: dict[str, Setting]  # by name; of sections, too
    hydra: Any  # Hydra's own settings

    def of(self, name: str, value: Any) -> Setting:
        """A setting or section by its name; `value` is written down if no file does."""
        said = self.said.get(name) or Setting(name, "", "")
        return said if said.value or (isinstance(value, dict) and value) else replace(said, value=_written(value))


@contextmanager
def _loader() -> Iterator[ConfigLoader]:
    GlobalHydra.instance().clear()
    with hydra.initialize_config_dir(str(config_dir()), version_base="1.3"):
        yield GlobalHydra.instance().config_loader()


def _compose(loader: ConfigLoader, script: str, overrides: Sequence[str]) -> _Composed:
    cfg = hydra.compose(script, list(overrides), return_hydra_config=True)
    own, values = cfg.hydra, _plain(cfg)
    del values["hydra"]
    said: dict[str, Setting] = {}
    for default in loader.compute_defaults_list(script, list(overrides), RunMode.RUN).defaults:
        path = config_dir() / f"{default.config_path}.yaml"
        if path.is_file():  # and not Hydra's own, or of a folder that the command line names
            for setting in read_config(path, default.package).settings:
                before = said.get(setting.name)
                said[setting.name] = replace(setting, comment=setting.comment or (before.comment if before else ""))
    for override in OverridesParser.create().parse_overrides(list(overrides)):
        if (name := override.key_or_group) in said and said[name].value:
            said[name] = replace(said[name], value=_written(_plain(OmegaConf.select(cfg, name))))
    return _Composed(script, list(overrides), values, said, own)


def _plain(value: Any) -> Any:
    return OmegaConf.to_container(value, resolve=False) if OmegaConf.is_config(value) else value


def _written(value: Any) -> str:
    """A value in one line of YAML."""
    return " ".join(yaml.safe_dump(value, default_flow_style=True, width=10_000).removesuffix("...\n").split())


def _groups(loader: ConfigLoader, composed: _Composed) -> list[Setting]:
    """The groups of a script that leave a choice."""
    about = read_config(config_dir() / f"{composed.script}.yaml").beside
    names = [*([DOMAIN] if composed.script == "train_expert" else []), *about, LAUNCHER]
    chosen = composed.hydra.runtime.choices
    found = []
    for name in names:
        options = loader.get_group_options(name, ObjectType.CONFIG, composed.script, composed.overrides)
        choices = tuple(choice for choice in sorted(options) if _fits(composed, name, choice))
        if choices and choices != (chosen.get(name),):
            default = "null" if name in APART else str(chosen.get(name) or "null")
            found.append(Setting(name, default, about.get(name) or APART.get(name, ""), choices=choices))
    return found


def _fits(composed: _Composed, group: str, choice: str) -> bool:
    """Whether a choice is for this script: not named after another one, and without a section that this one lacks."""
    if f"train_{choice}" in SCRIPTS and f"train_{choice}" != composed.script:
        return False
    path = config_dir() / group / f"{choice}.yaml"
    if not path.is_file() or (config := read_config(path)).package:
        return True
    return {setting.name.partition(".")[0] for setting in config.settings} <= composed.values.keys()


def _leaves(composed: _Composed) -> Iterator[Setting]:
    """All settings, and those of our launchers among Hydra's own."""

    def walk(part: Mapping[str, Any], at: str, section: str) -> Iterator[Setting]:
        for key, value in part.items():
            setting = composed.of(f"{at}{key}", value)
            comment = setting.comment or section
            if isinstance(value, dict) and value:
                yield from walk(value, f"{setting.name}.", comment if at else "")
            elif not str(key).startswith("_"):
                yield replace(setting, comment=comment)

    yield from walk(composed.values, "", "")
    if composed.hydra.launcher._target_.startswith("hydra_plugins.flexo_"):
        yield from walk(_plain(composed.hydra.launcher), "hydra.launcher.", "")


def _lines(composed: _Composed) -> Iterator[tuple[str, str]]:
    """The settings as lines of YAML, each with its comment."""

    def walk(part: Mapping[str, Any], at: str, indent: str) -> Iterator[tuple[str, str]]:
        for key, value in part.items():
            setting = composed.of(f"{at}{key}", value)
            if isinstance(value, dict) and value:
                yield f"{indent}{key}:", setting.comment
                yield from walk(value, f"{setting.name}.", f"{indent}  ")
            elif not str(key).startswith("_"):
                yield f"{indent}{key}: {setting.value}", setting.comment

    yield from walk(composed.values, "", "")


def _aligned(lines: Sequence[tuple[str, str]], width: int) -> str:
    """Lines with their comments in one column, wrapped; after a long line the comment begins on the next one."""
    column = min(COLUMN, max(len(line) for line, _ in lines) + 2)
    out = []
    for line, comment in lines:
        parts = textwrap.wrap(comment, max(20, width - column - 2), break_long_words=False, break_on_hyphens=False)
        if not parts or len(line) + 2 > column:
            out.append(line)
            line = ""
        out += [f"{line if n == 0 else '':{column}}# {part}" for n, part in enumerate(parts)]
    return "\n".join(out) + "\n"
