"""What can be got out of a model: `flexo-leak` as a plain function.

found = leak("expert.pt", Texts.of(Path("prepared")), against=Path("anchor"))
found.rows, found.left_out
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from evals.matrix.model_loader import Given, new_shelf
from evals.privacy.attacks import canaries, extraction, membership
from evals.privacy.attacks.documents import Texts
from evals.privacy.attacks.part import Context, Extra, Need, Part, Row, Settings
from evals.privacy.attacks.targets import open_targets
from evals.privacy.besides import access, attribution, leaving, rows
from flexmix.canaries.manifest import read_manifest
from flexo.errors import InputError
from merge.formats.expert_file import open_expert
from merge.formats.expert_header import StatedPrivacy
from merge.tensor_io.json_file import read_json

FORMAT, VERSION = "flexo.leak", 1
PARTS: tuple[Part, ...] = (
    membership.PART,
    extraction.PART,
    canaries.PART,
    rows.PART,
    attribution.PART,
    leaving.PART,
    access.PART,
)


@dataclass(frozen=True)
class Leak:
    """Figures of one model."""

    model: str
    reads: float | None = None  # how often training read each document in the mean, as an expert file says
    rows: list[Row] = field(default_factory=list)
    left_out: dict[str, list[Need]] = field(default_factory=dict)  # part -> what it would have needed

    def to_dict(self) -> dict[str, Any]:
        """Figures alone; no text."""
        return {"format": FORMAT, "version": VERSION, **asdict(self)}


def read_leak(path: Path) -> Leak:
    """What `flexo-leak --json` wrote; raises `InputError` for anything else."""
    value = read_json(path)
    try:
        if (value.pop("format"), value.pop("version")) != (FORMAT, VERSION):
            raise ValueError("another format")
        return Leak(value["model"], value["reads"], [Row(**row) for row in value["rows"]], value["left_out"])
    except (KeyError, TypeError, ValueError) as error:
        raise InputError(
            f"{path}: not figures of flexo-leak, version {VERSION} ({error}). Expected a file of flexo-leak --json."
        ) from None


def leak(
    model: str,
    texts: Texts,
    *,
    against: Path | None = None,
    parts: Sequence[str] | None = None,
    settings: Settings = Settings(),
    extra: Extra = Extra(),
) -> Leak:
    """Runs the attacks on a model.

    Args:
        model: `[NAME=]PATH`: an expert file, a merged folder, or a dense model.
        texts: the owner's text, and what was planted in it.
        against: the anchor; None takes the public expert of a merged folder.
        parts: names of attacks; None runs all that have what they need.
        settings: how they are run.
        extra: what an attacker has besides, and what the model is compared with.

    Raises:
        InputError: no such model, text or part, or a part that was asked for lacks something.
    """
    known = {part.name: part for part in PARTS}
    if unknown := [name for name in parts or () if name not in known]:
        raise InputError(f"{unknown[0]!r}: no such part of flexo-leak. There are {', '.join(known)}.")
    wanted = [known[name] for name in parts or known]
    planted = read_manifest(texts.canaries) if texts.canaries else None
    with new_shelf(settings.dtype, settings.device) as shelf:
        given, target, reference = open_targets(model, against, shelf)
        members, others = texts.read(given.tokenizer, settings.seed, planted)
        context = Context(given, target, reference, members, others, planted, settings, extra)
        found = Leak(target.name, _reads(given))
        for part in wanted:
            if not (lacks := part.lacks(context)):
                found.rows.extend(part.run(context))
            elif parts is None:
                found.left_out[part.name] = lacks
            else:
                raise InputError(f"--parts {part.name}: this needs {' and '.join(lacks)}. See flexo-leak --help.")
    if len(found.left_out) == len(wanted):
        raise InputError(
            "flexo-leak: nothing to attack with. Give --source, or --members and --non-members, or --canaries."
        )
    return found


def _reads(given: Given) -> float | None:
    if given.kind != "pair":
        return None
    header = open_expert(given.path).header
    if isinstance(header.privacy, StatedPrivacy):  # it draws units at random, and counts padding as tokens
        return header.privacy.steps * header.privacy.sampling_rate
    return header.training.tokens * (1 - header.training.public_share) / header.data.tokens
