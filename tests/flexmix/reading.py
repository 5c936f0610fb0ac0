"""Reading a place in the tests of this room."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from flexmix.documents.reading import cut_into_tasks, read
from flexmix.documents.source import Document, SetAside, Source

STORIES = [
    f"Story {n}: the boat lay {n + 2} days in the harbour, and {3 * n + 1} people came to see it." for n in range(40)
]


def documents(place: Path | str, task_bytes: int = 1 << 20, **options: Any) -> list[Document]:
    """All documents of a place, task by task."""
    source = Source(str(place), **options)
    return [document for pieces in cut_into_tasks(source, task_bytes).tasks for document in read(source, pieces)]


def texts(place: Path | str, **options: Any) -> list[str]:
    """All texts of a place."""
    return [document.text for document in documents(place, **options)]


def with_damage(place: Path | str, task_bytes: int = 1 << 20, **options: Any) -> tuple[list[str], list[SetAside]]:
    """All texts of a place, and the records that were set aside."""
    source, aside = Source(str(place), **options), list[SetAside]()
    found = [
        document.text
        for pieces in cut_into_tasks(source, task_bytes).tasks
        for document in read(source, pieces, set_aside=aside.append)
    ]
    return found, aside
