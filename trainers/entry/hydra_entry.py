"""Running a training script under Hydra: a mistyped name gets its nearest match, a refusal is one message."""

from __future__ import annotations

import difflib
import logging
import os
import re
import sys
import warnings
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import nullcontext, suppress
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar, cast

import hydra
from hydra._internal.utils import get_args_parser
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override, ValueType
from hydra.errors import ConfigCompositionException, HydraException, MissingConfigException, OverrideParseException
from hydra.types import RunMode
from omegaconf import MISSING, DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from pydantic import TypeAdapter, ValidationError

from flexo.commands.table import command_called
from flexo.config_dir import config_dir
from flexo.console import refusals, session
from flexo.errors import InputError
from flexo.verbosity import is_verbose, take_flags
from trainers.entry.runs_here import RunsHere
from trainers.entry.typed_values import at_home, readable

if TYPE_CHECKING:
    from trainers.loop.run import Run

T = TypeVar("T")
NOISE = (
    "does not have many workers", "srun", "exists and is not empty", "smaller than the logging interval", "LeafSpec",
    "It is recommended to use `self.log",  # every device reads all held-out text
)  # fmt: skip


def run_hydra(task: Callable[[DictConfig], None], config_name: str) -> None:
    """Composes `config_name` with the command line and hands it to `task`.

    Exit codes: 0 done, 1 refused with one message, 130 and 143 stopped. A multirun in this process goes on behind a run
    that failed, and ends with a table of all. Other launchers are left to see for themselves that one failed.
    """
    here = RunsHere()

    def guarded(cfg: DictConfig) -> None:
        quiet()
        settings = HydraConfig.get()
        single, launcher = settings.mode != RunMode.MULTIRUN, settings.launcher._target_
        with refusals() if single else here.run(cfg, settings) if launcher.endswith("BasicLauncher") else nullcontext():
            if single and launcher.endswith("SlurmLauncher"):
                raise InputError("hydra/launcher: SLURM is for the runs of a multirun. Add -m, also for a single one.")
            if missing := list(_missing(OmegaConf.to_container(cfg, resolve=False))):
                gaps = " ".join(f"{name}=..." for name in missing)
                raise InputError(f"{', '.join(missing)}: no value. On the command line: {gaps}")
            task(cfg)

    decorated = hydra.main(version_base="1.3", config_path=str(config_dir()), config_name=config_name)(guarded)
    shown = os.environ.get("HYDRA_FULL_ERROR")
    os.environ["HYDRA_FULL_ERROR"] = "1"  # Hydra then raises, and the message is ours to write
    with session(), refusals():
        sys.argv[1:] = take_flags(sys.argv[1:])
        try:
            sys.argv[1:] = readable(sys.argv[1:], command_called(config_name).usage)
            _refuse_choices_that_are_no_names(sys.argv[1:])
            if {"-h", "--help"}.isdisjoint(sys.argv):
                decorated()
                here.end()
            else:
                _show_help(config_name)
        except (HydraException, OmegaConfBaseException) as error:
            if shown == "1":
                raise
            raise InputError(_explain(error, config_name).rstrip()) from error


def _show_help(config_name: str) -> None:
    """Prints the help of a script: Hydra's own leaves out the comments that stand beside the settings."""
    from trainers.entry.setting_help import help_text

    given = get_args_parser().parse_args(sys.argv[1:])
    further = [f"hydra.searchpath=[{given.config_dir}]"] if given.config_dir else []
    print(help_text(config_name, [*given.overrides, *further]).rstrip())


def read(cfg: DictConfig, name: str, kind: type[T], apart: Collection[str] = ()) -> T:
    """A setting, or a whole section as the dataclass that the code works with, each value of the type it declares.

    Args:
        cfg: the composed settings.
        name: of the setting or section, dotted; "" is all of them.
        kind: what it should be.
        apart: keys of the section that are no part of `kind`.

    Raises:
        InputError: a value of another type, a key that `kind` does not have, or an interpolation of nothing.
    """
    try:
        value = OmegaConf.select(cfg, name)
        if OmegaConf.is_config(value):
            value = cast(Any, OmegaConf.to_container(value, resolve=True))
        value = at_home(value)
    except OmegaConfBaseException as error:
        raise InputError(f"{name}: {str(error).splitlines()[0]}.") from None
    if isinstance(value, dict):
        value = {str(key): part for key, part in value.items() if key not in apart}
    if isinstance(value, dict) and is_dataclass(kind):
        known = [field.name for field in fields(cast(Any, kind))]
        if unknown := sorted(value.keys() - set(known)):
            at = ".".join(filter(None, [name, unknown[0]]))
            raise InputError(f"{at}: there is no such setting. {_nearest(unknown[0], known)}".rstrip())
    try:
        return TypeAdapter(kind).validate_python(value)
    except ValidationError as error:
        first = error.errors()[0]
        at = ".".join(filter(None, [name, *map(str, first["loc"])]))
        raise InputError(f"{at}: {first['input']!r} does not fit. {first['msg']}.{_quoted(first, at)}") from None


def read_run(cfg: DictConfig, apart: Collection[str] = ()) -> Run:
    """What the settings of all training scripts share: data, optimizer, loss, run and logger; output, seed and resume.

    Args:
        cfg: the composed settings.
        apart: keys of the section data that are no part of `DataOptions`.

    Raises:
        InputError: as `read` does.
    """
    from hydra.utils import instantiate

    from trainers.data import DataOptions
    from trainers.loop.module import LossOptions
    from trainers.loop.optimizer import OptimizerOptions
    from trainers.loop.run import Run
    from trainers.loop.trainer import TrainerOptions

    return Run(
        output=read(cfg, "output", Path),
        data=read(cfg, "data", DataOptions, apart),
        optimizer=read(cfg, "optimizer", OptimizerOptions),
        loss=read(cfg, "loss", LossOptions),
        trainer=read(cfg, "run", TrainerOptions),
        logger=instantiate(cfg.logger),
        seed=read(cfg, "seed", int),
        resume=read(cfg, "resume", bool),
    )


def _quoted(error: Any, at: str) -> str:
    """How to write a name that Hydra took for a number or a truth value; how it was written is not known any more."""
    if error["type"] not in ("string_type", "path_type") or not isinstance(error["input"], int | float):
        return ""
    return f""" A name that looks like a number, or like true, needs quotes within quotes: "{at}='...'"."""


def _refuse_choices_that_are_no_names(arguments: Sequence[str]) -> None:
    """Refuses `+domain=2024`: where Hydra expects the name of a file, a number ends in a traceback of its own."""
    for argument in arguments:
        found = re.fullmatch(r"\+{0,2}([a-z_/]+)=(.+)", argument)
        if not found or not (config_dir() / found[1]).is_dir():
            continue
        group, choices = found[1], sorted(path.stem for path in (config_dir() / found[1]).glob("*.yaml"))
        for name in found[2].strip("[]").split(","):
            with suppress(HydraException):  # a part of something else, which Hydra explains
                given = OverridesParser.create().parse_override(f"x={name}")
                if not given.is_sweep_override() and not isinstance(given.value(), str):
                    raise InputError(f"{group}={name}: there is no such {group}. {_nearest(name, choices)}".rstrip())


def _missing(part: Any, path: str = "") -> Iterator[str]:
    """The settings that have no value, dotted."""
    for key, value in part.items():
        if value == MISSING:
            yield path + key
        elif isinstance(value, dict):
            yield from _missing(value, f"{path}{key}.")


def _explain(error: Exception, config_name: str) -> str:
    """One message for a command line that does not compose."""
    script = f"{command_called(config_name).usage} --help"
    if isinstance(error, MissingConfigException) and error.missing_cfg_file and error.options:
        group, _, name = error.missing_cfg_file.rpartition("/")
        return f"{group}={name}: there is no such {group}. {_nearest(name, error.options)}"
    suspect = None if isinstance(error, OverrideParseException) else _suspect(config_name)
    if suspect is not None and (said := _explain_override(*suspect)):
        return f"{said}See {script}"
    cause = f" ({error.__cause__})" if isinstance(error, ConfigCompositionException) and error.__cause__ else ""
    return f"{' '.join(str(error).split())}{cause} See {script}"


def _nearest(name: str, options: Sequence[str]) -> str:
    near = difflib.get_close_matches(name, options, n=1, cutoff=0.5)
    return (f"Did you mean {near[0]!r}? " if near else "") + (
        f"There are: {', '.join(sorted(options))}. " if len(options) <= 12 else ""
    )


def _suspect(config_name: str) -> tuple[Override, list[Override], list[str]] | None:
    """The override of this command line that does not compose, those that do without it, and the settings with them.

    They are tried one after the other: first the choices of groups, as Hydra does, and of a sweep its first value.
    """
    given = OverridesParser.create().parse_overrides(get_args_parser().parse_args(sys.argv[1:]).overrides)
    taken: list[str] = []
    before: list[Override] = []
    GlobalHydra.instance().clear()
    with hydra.initialize_config_dir(str(config_dir()), version_base="1.3"):
        cfg = hydra.compose(config_name)
        for override in sorted(given, key=lambda one: "." in one.key_or_group):
            line = override.input_line or ""
            if override.value_type == ValueType.GLOB_CHOICE_SWEEP:  # of names that are there
                continue
            try:
                if override.is_sweep_override():
                    line = f"{override.get_key_element()}={next(iter(override.sweep_string_iterator()))}"
                cfg = hydra.compose(config_name, [*taken, line])
            except (HydraException, OmegaConfBaseException):
                return override, before, list(_settings(cfg))
            taken.append(line)
            before.append(override)
    return None


def _explain_override(override: Override, before: Sequence[Override], settings: Sequence[str]) -> str:
    """Why an override does not compose with those before it; "" if its name is not why."""
    name = "@".join(filter(None, (override.key_or_group, override.package)))
    if override.is_add() and any(other.key_or_group == override.key_or_group for other in before):
        return f"{name}: given twice, and it can be given once. "
    choices = sorted(path.stem for path in (config_dir() / name).glob("*.yaml"))
    if override.is_add() and (name in settings or choices):
        return f"{name}: set already, so it takes no plus: {(override.input_line or name).lstrip('+')}. "
    if inside := [setting for setting in settings if setting.startswith(f"{name}.")]:
        return f"{name}: a section of settings, not a choice. It has {', '.join(inside)}. "
    if choices:
        return f"{name}: nothing is chosen yet, so it takes a plus: +{name}=CHOICE. {_nearest('', choices)}"
    return "" if name in settings else f"{name}: there is no such setting. {_nearest(name, settings)}"


def _settings(cfg: DictConfig, path: str = "") -> Iterator[str]:
    """All settings and sections, dotted."""
    key: Any
    for key in cfg:
        yield f"{path}{key}"
        readable = not OmegaConf.is_missing(cfg, key) and not OmegaConf.is_interpolation(cfg, key)
        if readable and isinstance(cfg[key], DictConfig):
            yield from _settings(cfg[key], f"{path}{key}.")


def quiet() -> None:
    """Silences what libraries say about themselves, unless `-v` asks for it; what matters to people is said by us."""
    if is_verbose():
        return
    import transformers

    hub_logging: Any = transformers.utils.logging  # it comes without types
    hub_logging.disable_progress_bar()
    logging.disable(logging.INFO)  # Lightning sets the levels of its loggers anew when it is imported
    for about in NOISE:
        warnings.filterwarnings("ignore", message=f".*{about}")
