"""Running a training script under Hydra: a mistyped name gets its nearest match, a refusal is one message."""

from __future__ import annotations

import difflib
import logging
import os
import re
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import Any, cast

import hydra
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.errors import ConfigCompositionException, HydraException, MissingConfigException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from flexmix.paths import config_dir
from merge.console import refusals
from merge.errors import InputError

NOISE = (
    "does not have many workers", "srun", "exists and is not empty", "smaller than the logging interval", "LeafSpec",
)  # fmt: skip


def run_hydra(task: Callable[[DictConfig], None], config_name: str) -> None:
    """Composes `config_name` with the command line and hands it to `task`.

    Exit codes: 0 done, 1 refused with one message, 130 and 143 stopped. Inside a multirun an `InputError` is left to
    Hydra, so that its launchers see that the job failed.
    """

    def guarded(cfg: DictConfig) -> None:
        quiet()
        if HydraConfig.get().mode == RunMode.MULTIRUN:
            task(cfg)
            return
        with refusals():
            task(cfg)

    decorated = hydra.main(version_base="1.3", config_path=str(config_dir()), config_name=config_name)(guarded)
    shown = os.environ.get("HYDRA_FULL_ERROR")
    os.environ["HYDRA_FULL_ERROR"] = "1"  # Hydra then raises, and the message is ours to write
    with refusals():
        try:
            decorated()
        except (HydraException, OmegaConfBaseException) as error:
            if shown == "1":
                raise
            raise InputError(_explain(error, config_name)) from error


def plain(cfg: DictConfig, *names: str) -> dict[str, Any]:
    """The settings under `names` merged into one dict, interpolations resolved, missing values refused by name."""
    values: dict[str, Any] = {}
    for name in names:
        part = OmegaConf.select(cfg, name)
        if missing := [key for key in part if OmegaConf.is_missing(part, key)]:
            raise InputError(f"{name}.{missing[0]}: no value. Give one on the command line: {name}.{missing[0]}=...")
        values |= cast(dict[str, Any], OmegaConf.to_container(part, resolve=True))
    return values


def _explain(error: Exception, config_name: str) -> str:
    """One message for a command line that does not compose."""
    script = f"python {config_name}.py --help"
    if isinstance(error, MissingConfigException) and error.missing_cfg_file and error.options:
        group, _, name = error.missing_cfg_file.rpartition("/")
        return f"{group}={name}: there is no such {group}. {_nearest(name, error.options)}"
    if found := re.search(r"Could not (?:override|append to config.*?) '?([\w.@/]+)'?", str(error)):
        return f"{found[1]}: there is no such setting. {_nearest(found[1], list(_settings(config_name)))} See {script}"
    cause = f" ({error.__cause__})" if isinstance(error, ConfigCompositionException) and error.__cause__ else ""
    return f"{' '.join(str(error).split())}{cause} See {script}"


def _nearest(name: str, options: Sequence[str]) -> str:
    near = difflib.get_close_matches(name, options, n=1, cutoff=0.5)
    return (f"Did you mean {near[0]!r}? " if near else "") + (
        f"There are: {', '.join(sorted(options))}." if len(options) <= 12 else ""
    )


def _settings(config_name: str) -> Iterator[str]:
    """All settings of a config with this command line's groups, dotted."""
    groups = [arg for arg in sys.argv[1:] if re.fullmatch(r"\+?[a-z_/]+=[\w,]+", arg) and "." not in arg]
    GlobalHydra.instance().clear()
    with hydra.initialize_config_dir(str(config_dir()), version_base="1.3"):
        try:
            cfg = hydra.compose(config_name, groups)
        except (HydraException, OmegaConfBaseException):
            cfg = hydra.compose(config_name)

    def walk(part: Any, path: str) -> Iterator[str]:
        for key in part:
            yield path + str(key)
            readable = not OmegaConf.is_missing(part, key) and not OmegaConf.is_interpolation(part, key)
            if readable and isinstance(part[key], DictConfig):
                yield from walk(part[key], f"{path}{key}.")

    yield from walk(cfg, "")


def quiet() -> None:
    """Silences what libraries say about themselves; what matters to people is said by us."""
    import transformers

    hub_logging: Any = transformers.utils.logging  # it comes without types
    hub_logging.disable_progress_bar()
    for name in ("lightning.pytorch", "lightning.fabric", "lightning.pytorch.utilities.rank_zero"):
        logging.getLogger(name).setLevel(logging.ERROR)
    for about in NOISE:
        warnings.filterwarnings("ignore", message=f".*{about}")
