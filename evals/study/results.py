"""What the runs of a study measured, put together: one `results.json` a seed, and the report over all seeds.

Each recipe is measured by a run of its own, so that whatever is there can be reported at any time.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from evals.study.plan import Step
from merge.checkpoint import write_json
from merge.errors import InputError
from merge.files import new_file

FORMAT = ("flexo.results", 1)


def join_results(parts: Sequence[Path], output: Path) -> None:
    """Writes the results of several measurements of one seed as one file.

    A model that comes more than once, such as the anchor, is taken from the first.

    Raises `InputError` if files are no results, or not of the same text.
    """
    whole: dict[str, Any] = {}
    for path in parts:
        part = read_results(path)
        if not whole:
            whole = part
            continue
        for key in ("seed", "split", "max_bytes", "domains"):
            if part[key] != whole[key]:
                raise InputError(f"{path}: another {key} than {parts[0]}. Delete both and measure again.")
        new = [model for model in part["models"] if model["name"] not in {model["name"] for model in whole["models"]}]
        names = {model["name"] for model in new}
        whole["models"] += new
        whole["cells"] += [cell for cell in part["cells"] if cell["model"] in names]
    with new_file(output, replace=True) as partial:
        write_json(partial, whole)


def read_results(path: Path) -> dict[str, Any]:
    try:
        found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        if (found["format"], found["version"]) != FORMAT:
            raise ValueError("another format")
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(f"{path}: no results of flexo-eval ({error}). Delete it and measure again.") from None
    return found


def measured_so_far(folder: Path, steps: Sequence[Step]) -> dict[Path, list[Path]]:
    """For each seed's results file, the measurements that are there, in the order of the plan."""
    found: dict[Path, list[Path]] = {}
    for step in steps:
        if step.measures and (folder / step.makes).exists():
            seed, split, _ = step.makes.split("/")
            found.setdefault(folder / seed / f"{results_name(split)}.json", []).append(folder / step.makes)
    return found


def results_name(split: str) -> str:
    return "results" if split == "test" else f"results-{split}"
