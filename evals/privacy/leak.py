"""What can be got out of a model: `flexo-leak` as a plain function.

found = leak("expert.pt", Texts(Path("train.jsonl"), Path("test.jsonl")), against=Path("anchor"))
found.rows, found.left_out
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from evals.matrix.model_loader import new_shelf
from evals.privacy.attacks import membership
from evals.privacy.attacks.part import Context, Extra, Need, Part, Row
from evals.privacy.attacks.targets import open_targets
from evals.privacy.besides import access, leaving
from evals.scoring.held_out import read_texts
from flexo.errors import InputError

PARTS: tuple[Part, ...] = (membership.PART, leaving.PART, access.PART)


@dataclass(frozen=True)
class Texts:
    """The owner's text; a part that needs what is not there is left out."""

    members: Path | None = None  # documents that were trained on
    non_members: Path | None = None  # documents of the same source that were not
    extra: Extra = field(default_factory=Extra)


@dataclass(frozen=True)
class Leak:
    """Figures of one model."""

    model: str
    rows: list[Row] = field(default_factory=list)
    left_out: dict[str, list[Need]] = field(default_factory=dict)  # part -> what it would have needed


def leak(
    model: str,
    texts: Texts,
    *,
    against: Path | None = None,
    parts: Sequence[str] | None = None,
    max_bytes: int = 1_000_000,
    dtype: str = "auto",
    device: str = "auto",
) -> Leak:
    """Runs the attacks on a model.

    Args:
        model: `[NAME=]PATH`: an expert file, a merged folder, or a dense model.
        texts: the owner's text.
        against: the anchor; None takes the public expert of a merged folder.
        parts: names of attacks; None runs all that have what they need.
        max_bytes: text to read of members and of non-members.
        dtype, device: as in `load_model`.

    Raises:
        InputError: no such model, text or part.
    """
    known = {part.name: part for part in PARTS}
    if unknown := [name for name in parts or () if name not in known]:
        raise InputError(f"{unknown[0]!r}: no such part of flexo-leak. There are {', '.join(known)}.")
    wanted = [known[name] for name in parts or known]
    with new_shelf(dtype, device) as shelf:
        given, target, reference = open_targets(model, against, shelf)
        folder = given.tokenizer
        files = {"members": texts.members, "non-members": texts.non_members}
        read = read_texts({name: path for name, path in files.items() if path}, folder, max_bytes)
        context = Context(given, target, reference, folder, read.get("members"), read.get("non-members"), texts.extra)
        found = Leak(target.name)
        for part in wanted:
            if lacks := part.lacks(context):
                found.left_out[part.name] = lacks
            else:
                found.rows.extend(part.run(context))
    return found
