"""A folder of tasks for lm-eval: the questions as JSON lines, a YAML file for each task, and groups over them.

    flexo                      everything
      flexo_text                 the mean over the domains
        flexo_text_math            bits per byte of held-out documents
      flexo_arithmetic           exact answers
      flexo_arithmetic_choice    the same questions, four answers to choose from
      flexo_choices_educational  how does a passage go on? four continuations to choose from

It may be moved and sent: `items.py` in it finds the questions beside itself.

    make_task_folder(Reading(Path("data/corpora")), Path("tasks"))
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from random import Random
from typing import Any

from evals.scoring.held_out import Reading, documents_digest
from evals.tasks.arithmetic import arithmetic
from evals.tasks.passages import continuations
from evals.tasks.questions import in_fours
from evals.tasks.task_yaml import CHOICE, EXACT, MEAN, TEXT, group_yaml, task_yaml
from flexo.atomic_files import new_folder, refuse_occupied
from flexo.errors import InputError
from merge.tensor_io.json_file import write_json

GROUP = "flexo"
EDUCATIONAL = "educational"
MANIFEST = "manifest.json"
ITEMS = "items.py"


@dataclass(frozen=True)
class Task:
    """One task of the folder."""

    name: str
    rows: Sequence[Mapping[str, Any]]  # documents or questions
    body: str  # the part of its YAML that says how answers are judged


def make_task_folder(
    reading: Reading, output: Path, *, choices: Sequence[str] | None = None, questions: int = 400, seed: int = 0
) -> list[Task]:
    """Writes the folder, whole or not at all: `flexo-tasks` as a plain function.

    Args:
        reading: the held-out text, as `flexo-eval` reads it; the folder will hold it.
        output: the folder to make; it may not exist yet or must be empty.
        choices: domains whose passages become multiple choice; None: educational, if it is there.
        questions: of arithmetic, and of each multiple choice, at most.
        seed: of the questions.

    Returns:
        The tasks in it.

    Raises:
        InputError: there is no such text, no multiple choice can be made of it, or the folder cannot be written.
    """
    refuse_occupied(output)
    texts = reading.documents(None)
    if choices is None:
        choices = [EDUCATIONAL] if EDUCATIONAL in texts else []
    if absent := [name for name in choices if name not in texts]:
        raise InputError(f"--choices {absent[0]}: not among the domains that are read, {', '.join(texts)}.")
    tasks = _tasks(texts, choices, questions, seed)
    _write_folder(output, tasks, texts, {"split": reading.split, "max_bytes": reading.max_bytes, "seed": seed})
    return tasks


def _tasks(texts: Mapping[str, Sequence[str]], choices: Sequence[str], count: int, seed: int) -> list[Task]:
    sums = arithmetic(count, Random(f"arithmetic {seed}"))
    tasks = [Task(f"{GROUP}_text_{domain}", [{"text": text} for text in texts[domain]], TEXT) for domain in texts]
    asked = [{"prompt": one.prompt, "answer": one.answer, "kind": one.kind} for one in sums]
    tasks.append(Task(f"{GROUP}_arithmetic", asked, EXACT))
    chosen = {"arithmetic_choice": in_fours(sums, count, Random(f"arithmetic choice {seed}"))}
    for domain in choices:
        chosen[f"choices_{domain}"] = continuations(texts[domain], count, Random(f"{domain} {seed}"), domain)
    return tasks + [Task(f"{GROUP}_{name}", list(map(asdict, made)), CHOICE) for name, made in chosen.items()]


def _write_folder(
    output: Path, tasks: Sequence[Task], texts: Mapping[str, Sequence[str]], about: Mapping[str, Any]
) -> None:
    text = [task.name for task in tasks if task.body is TEXT]
    with new_folder(output) as folder:
        for task in tasks:
            file = f"{task.name}.jsonl"
            _write_lines(folder / file, task.rows)
            _write(folder / f"{task.name}.yaml", task_yaml(task.name, file, task.body))
        _write(folder / f"{GROUP}_text.yaml", group_yaml(f"{GROUP}_text", text, MEAN))
        others = [task.name for task in tasks if task.body is not TEXT]
        _write(folder / f"{GROUP}.yaml", group_yaml(GROUP, [f"{GROUP}_text", *others]))
        shutil.copyfile(Path(__file__).with_name(ITEMS), folder / ITEMS)
        write_json(folder / MANIFEST, _manifest(tasks, texts, about))


def _manifest(tasks: Sequence[Task], texts: Mapping[str, Sequence[str]], about: Mapping[str, Any]) -> dict[str, Any]:
    """Digests are those of `flexo-eval --json`: the same digest, the same documents."""
    return {
        "format": "flexo.tasks",
        "version": 1,
        "flexo": version("flexo"),
        **about,
        "domains": [
            {
                "name": domain,
                "documents": len(documents),
                "bytes": sum(len(text.encode()) for text in documents),
                "digest": documents_digest(documents),
            }
            for domain, documents in texts.items()
        ],
        "tasks": {task.name: len(task.rows) for task in tasks},
    }


def _write(path: Path, text: str) -> None:
    path.write_text(text, encoding="utf-8")


def _write_lines(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    with path.open("w", encoding="utf-8") as file:
        file.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
