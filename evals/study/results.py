"""The results of a study put together: one `results.json` a seed, from one file for each recipe.

Each recipe is measured by a step of its own, so that a report can be written at any time.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from evals.matrix.results import read_results
from flexo.atomic_files import new_file
from flexo.errors import InputError
from merge.tensor_io.json_file import write_json

MADE_OF_OTHERS = ("ensemble", "classifier")  # kinds of rows that are not one model


def join_results(parts: Sequence[Path], output: Path) -> None:
    """Writes the results of several measurements of one seed as one file.

    A model that comes more than once, such as the anchor, is taken from the first. An ensemble or a classifier is named
    after its way of choosing, not after its models; that of a second recipe gets the recipe's name: `BTM top-2, mine`.

    Args:
        parts: files of `flexo-eval`, named after their recipes.
        output: replaced if it is there.

    Raises:
        InputError: a file holds no results, or two were measured on different text.
    """
    whole = read_results(parts[0])
    for path in parts[1:]:
        part = read_results(path)
        for what in ("seed", "split", "max_bytes", "domains"):
            if getattr(part, what) != getattr(whole, what):
                raise InputError(f"{path}: another {what} than {parts[0]}. Delete the older one and measure again.")
        known = {model.name for model in whole.models}
        made = {model.name for model in part.models if model.kind in MADE_OF_OTHERS}
        names = {name: f"{name}, {path.stem}" for name in known & made}
        credits = [replace(credit, model=names.get(credit.model, credit.model)) for credit in part.credits]
        models = [replace(model, name=names.get(model.name, model.name)) for model in part.models]
        cells = [replace(cell, model=names.get(cell.model, cell.model)) for cell in part.cells]
        whole = replace(
            whole,
            models=whole.models + [model for model in models if model.name not in known],
            cells=whole.cells + [cell for cell in cells if cell.model not in known],
            credits=whole.credits + [credit for credit in credits if credit.model not in known],
        )
    with new_file(output, replace=True) as partial:
        write_json(partial, whole.to_dict())


def seeds_of(folder: Path) -> list[str]:
    """The names of the folders of seeds in a study's folder, ordered by number."""
    found = (path.name for path in folder.glob("seed*") if path.name[4:].isdecimal())
    return sorted(found, key=lambda name: int(name[4:]))


def named(what: str, split: str) -> str:
    """A file's name; files of another split than `test` bear its name."""
    return what if split == "test" else f"{what}-{split}"
