"""What a task counts: documents by what became of them, values that a filter met, damaged lines that were set aside."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from flexmix.documents.source import Row, SetAside, Source
from flexmix.documents.source.columns import SHOWN, value_of, written
from flexmix.prepare.options import Options
from flexo.errors import InputError

COUNTS, DAMAGED = "counts.json", "damaged.jsonl"
FILTERED = "filtered: "
VALUES = 50  # different values of a column that are kept
LONGEST = 60  # characters of such a value
FIRST = 3  # damaged lines in a message
BEGINNING = 1000  # characters of a damaged record that are kept


@dataclass
class Tally:
    """The counts of a task, shared by its steps."""

    counts: Counter[str] = field(default_factory=Counter)
    values: dict[str, Counter[str]] = field(default_factory=dict)  # column -> value -> documents left out for it
    damaged: list[SetAside] = field(default_factory=list)

    def clear(self) -> None:
        """For the next task of the same process."""
        self.counts.clear()
        self.values.clear()
        self.damaged.clear()

    def left_out(self, source: Source, name: str, row: Row) -> None:
        """A document that the filter `name` has left out."""
        self.counts[FILTERED + name] += 1
        for column, given in source.where.items():
            if name == f"{column}={given}":
                values = self.values.setdefault(column, Counter())
                value = written(value_of(row, column))[:LONGEST]
                if value in values or len(values) < VALUES:
                    values[value] += 1

    def set_aside(self, found: SetAside) -> None:
        """A damaged record."""
        self.damaged.append(found)
        self.counts["damaged"] += found.damaged.lines
        self.counts["read"] += found.damaged.lines

    def write(self, folder: Path) -> None:
        """Keeps the counts in a task's folder."""
        about = {"counts": dict(self.counts), "values": {name: dict(found) for name, found in self.values.items()}}
        (folder / COUNTS).write_text(json.dumps(about), encoding="utf-8")
        lines = (json.dumps(_line(found), ensure_ascii=False) + "\n" for found in self.damaged)
        (folder / DAMAGED).write_text("".join(lines), encoding="utf-8", errors="surrogateescape")


def read_tallies(folders: Iterable[Path]) -> tuple[Counter[str], dict[str, Counter[str]]]:
    """The counts and values of all tasks together."""
    counts: Counter[str] = Counter()
    values: dict[str, Counter[str]] = {}
    for folder in folders:
        about = json.loads((folder / COUNTS).read_text(encoding="utf-8"))
        counts.update(about["counts"])
        for column, found in about["values"].items():
            values.setdefault(column, Counter()).update(found)
    return counts, values


def check_damaged(counts: Counter[str], folders: Iterable[Path], options: Options) -> None:
    """Raises `InputError` if more damaged lines were set aside than is allowed, with the first of them."""
    if options.allows(counts["damaged"], counts["read"]):
        return
    first: list[str] = []
    for folder in folders:
        lines = (folder / DAMAGED).read_text(encoding="utf-8", errors="surrogateescape").split("\n")[:-1]
        for line in lines[: FIRST - len(first)]:
            about: dict[str, Any] = json.loads(line)
            first.append(f"{about['file']}: {about['at']}: {about['reason']}")
    raise InputError(
        f"{counts['damaged']:,} damaged lines of {counts['read']:,}, and --skip-damaged allows {options.skip_damaged}. "
        f"The first: {' '.join(first)}"
    )


def join_damaged(folders: Iterable[Path], path: Path) -> None:
    """Puts the damaged records of all tasks into one file, if there are any."""
    parts = [part for folder in folders if (part := folder / DAMAGED).stat().st_size]
    if not parts:
        return
    with path.open("wb") as file:
        for part in parts:
            file.write(part.read_bytes())


def shown(values: dict[str, Counter[str]]) -> str:
    """The values that filters met, most frequent first, in a sentence; empty without any."""
    columns = []
    for column, found in values.items():
        first = ", ".join(f"{value} ({count:,})" for value, count in found.most_common(SHOWN))
        columns.append(f"{column} is {first}{' and others' if len(found) > SHOWN else ''}")
    return f"Found: {'; '.join(columns)}. " if columns else ""


def _line(found: SetAside) -> dict[str, str]:
    beginning = found.damaged.beginning[:BEGINNING].encode("utf-8", "backslashreplace").decode()
    return {"file": found.file, "at": found.at, "reason": found.damaged.reason, "beginning": beginning}
