"""The work folder of an unfinished run, beside its output: held by one process, recognised by its settings."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from flexo.atomic_files import new_file
from flexo.errors import InputError
from flexo.locks import hold
from flexo.verbosity import note
from merge.tensor_io.json_file import write_json
from trainers.distributed import is_first

CHECKPOINT, SETTINGS, RESULT = "last.ckpt", "settings.json", "result.json"


@contextmanager
def work_folder(output: Path, settings: dict[str, Any], resume: bool) -> Iterator[Path]:
    """The work folder of the run that makes `output`, locked by the first process of the run.

    A folder made here is removed again if the run ends in an exception before its first checkpoint.

    Raises `InputError` if another process has it, or if it belongs to a run with other settings and `resume` is true.
    """
    folder = work_of(output)
    if not is_first():
        yield folder
        return
    made = [path for path in (folder, *folder.parents) if not path.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    with hold(folder / "lock", f"{folder}: another run is working here. Wait for it, or choose another output."):
        try:
            _check_settings(folder, settings, resume)
            yield folder
        except BaseException:
            if folder in made and not (folder / CHECKPOINT).exists():
                shutil.rmtree(folder)
                for parent in made[1:]:
                    with suppress(OSError):  # something else is in it by now
                        parent.rmdir()
            raise


def kept_settings(output: Path) -> dict[str, Any]:
    """The settings of the unfinished run for `output`; nothing if there is none."""
    work = work_of(output)
    return _settings_of(work) if (work / CHECKPOINT).exists() else {}


def keep_result(work: Path, result: dict[str, Any]) -> None:
    """Notes what identifies the file that is about to be written, so that a later start recognises it."""
    write_json(work / RESULT, result)


def kept_result(output: Path) -> dict[str, Any] | None:
    """What `keep_result` wrote for `output`; None if there is nothing, or it is no longer whole."""
    try:
        result: dict[str, Any] = json.loads((work_of(output) / RESULT).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return result


def work_of(output: Path) -> Path:
    """The work folder of the run that makes `output`, whether it is there or not."""
    return output.with_name(output.name.removesuffix(output.suffix) + ".run")


def _check_settings(folder: Path, settings: dict[str, Any], resume: bool) -> None:
    """Starts a work folder, or recognises it by its settings."""
    path, checkpoint = folder / SETTINGS, folder / CHECKPOINT
    if not resume:
        checkpoint.unlink(missing_ok=True)
    if checkpoint.exists() and (earlier := _settings_of(folder)):
        ours = json.loads(json.dumps(settings))
        if differing := sorted(name for name in earlier.keys() | ours.keys() if earlier.get(name) != ours.get(name)):
            name = differing[0]
            raise InputError(
                f"{folder}: an unfinished run with other settings ({name} was {earlier.get(name)}, now "
                f"{ours.get(name)}). Finish it with the same command, start over with resume=false, or choose "
                "another output."
            )
        note(f"resuming from {checkpoint}")
    with new_file(path, replace=True) as partial:
        write_json(partial, settings)


def _settings_of(folder: Path) -> dict[str, Any]:
    try:
        settings: dict[str, Any] = json.loads((folder / SETTINGS).read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except ValueError:
        raise InputError(f"{folder / SETTINGS}: damaged. Start over with resume=false.") from None
    return settings
