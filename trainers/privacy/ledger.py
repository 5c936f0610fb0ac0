"""A ledger beside an owner's text: what all runs on it have cost together.

Guarantees add up: two runs on the same text give away more than each. A run is entered before it draws its first unit,
and stays entered if it is stopped, for nobody can say what was seen of it.
"""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

from flexo.atomic_files import new_file
from flexo.errors import InputError
from flexo.locks import hold
from merge.tensor_io.json_file import read_json, write_json
from trainers.privacy.accounting import Release, spent
from trainers.privacy.guarantee import Guarantee, PrivacyOptions

FORMAT, VERSION = "flexo.privacy-ledger", 1


def ledger_of(text: Path, options: PrivacyOptions) -> Path:
    """Where the ledger of a text is: the file that `options` name, or one beside it."""
    return options.ledger or text.with_name(f"{text.name}.privacy.json")


def read_ledger(path: Path, digest: str) -> dict[str, Any]:
    """The runs that have been entered, by name; none where there is no file yet.

    Args:
        path: of the file.
        digest: of the text, see `flexmix.tokens.shard.text_digest`.

    Raises:
        InputError: the file is no ledger, or that of other text.
    """
    if not path.exists():
        return {}
    try:
        about = read_json(path)
        if (about["format"], about["version"]) != (FORMAT, VERSION):
            raise ValueError("another format")
        theirs, runs = str(about["text"]), dict(about["runs"])
        for run in runs.values():
            str(run["unit"]), _releases(run)
    except (InputError, KeyError, TypeError, AttributeError, ValueError):
        raise InputError(
            f"{path}: not a privacy ledger of version {VERSION}, or damaged. Restore it from a copy: without it nobody "
            "knows what was spent on this text."
        ) from None
    if theirs != digest:
        raise InputError(
            f"{path}: the ledger of other text (sha256 {theirs[:12]}, this text has {digest[:12]}). If people of that "
            "text are in this one, what was spent on them counts. Name another file with privacy.ledger=FILE only "
            "where they are not."
        )
    return runs


def enter(path: Path, digest: str, name: str, output: str, made: Guarantee) -> str:
    """Enters a run under its name, in place of what it had entered before; says what has been spent.

    Raises `InputError`, and writes nothing, if that is more than the budget, or the file cannot be read or written.
    """
    unit, budget = made.options.unit, made.options.budget
    try:
        with hold(path.with_name(f"{path.name}.lock")):
            runs = read_ledger(path, digest)
            runs.pop(name, None)
            earlier = [one for run in runs.values() if run["unit"] == unit for one in _releases(run)]
            before = spent(earlier, made.delta) if earlier else 0.0
            total = spent([*earlier, *made.releases], made.delta)
            if budget is not None and total > budget:
                raise InputError(
                    f"{path}: runs on this text have cost an epsilon of {before:.3g}, and with this one it would be "
                    f"{total:.3g}, above privacy.budget={budget:g}. Choose a smaller privacy.epsilon, or do not run it."
                )
            others = sorted({run["unit"] for run in runs.values()} - {unit})
            releases = [asdict(one) for one in made.releases]
            run = {"output": output, "unit": unit, "epsilon": made.epsilon, "delta": made.delta, "releases": releases}
            about = {"format": FORMAT, "version": VERSION, "text": digest, "runs": runs | {name: run}}
            with new_file(path, replace=True) as partial:
                write_json(partial, about)
    except OSError as error:
        raise InputError(
            f"{path}: the privacy ledger cannot be written ({error.strerror}). Name a place with privacy.ledger=FILE."
        ) from None
    apart = f"; runs for {', '.join(others)} are not in this sum" if others else ""
    limit = "" if budget is None else f" of {budget:g}"
    return f"spent on this text so far: an epsilon of {total:.3g}{limit} ({path}{apart})"


def _releases(run: Any) -> list[Release]:
    """Raises ValueError or TypeError for what is none."""
    found = [Release(str(one["name"]), float(one["noise"]), float(one["rate"]), int(one["times"]))
             for one in run["releases"]]  # fmt: skip
    if not all(one.noise > 0 and 0 < one.rate <= 1 and one.times >= 1 for one in found):
        raise ValueError("no releases")
    return found
