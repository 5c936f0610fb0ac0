"""What can be got out of a model: `flexo-leak` as a plain function.

found = leak("expert.pt", Texts.of(Path("prepared")), against=Path("anchor"))
found.rows, found.left_out
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError

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
PARTS: dict[str, Part] = {
    module.PART.name: module.PART for module in (membership, extraction, canaries, rows, attribution, leaving, access)
}


@dataclass(frozen=True)
class Leak:
    """Figures of one model."""

    model: str
    reads: float | None = None  # how often training read each document in the mean, as an expert file says
    rows: list[Row] = field(default_factory=list)
    left_out: dict[str, list[Need]] = field(default_factory=dict)  # part -> what it would have needed
    refused: dict[str, str] = field(default_factory=dict)  # part -> what is wrong with what it was given

    def to_dict(self) -> dict[str, Any]:
        """Figures alone; no text."""
        return {"format": FORMAT, "version": VERSION, **asdict(self)}


READ = TypeAdapter(Leak)


def read_leak(path: Path) -> Leak:
    """What `flexo-leak --json` wrote; raises `InputError` for anything else."""
    value = read_json(path)
    if (value.get("format"), value.get("version")) != (FORMAT, VERSION):
        raise InputError(f"{path}: not figures of flexo-leak, version {VERSION}. Expected a file of flexo-leak --json.")
    try:
        found = READ.validate_python(value)
    except ValidationError as error:
        first = error.errors()[0]
        raise InputError(
            f"{path}: not figures of flexo-leak: {'.'.join(map(str, first['loc']))}: {first['msg']}. Was it edited? "
            "Write it anew with flexo-leak."
        ) from None
    if unknown := [row.part for row in found.rows if row.part not in PARTS]:
        raise InputError(f"{path}: figures of {unknown[0]!r}, which is no part of this flexo-leak. Update flexo.")
    return found


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

    Returns:
        The figures; `refused` has the parts that could not use what they were given, and why.

    Raises:
        InputError: no such model, text or part, a part that was asked for lacks something, or no part could be run.
    """
    wanted = list(PARTS) if parts is None else list(dict.fromkeys(parts))
    if unknown := [name for name in wanted if name not in PARTS]:
        raise InputError(f"{unknown[0]!r}: no such part of flexo-leak. There are {', '.join(PARTS)}.")
    planted = read_manifest(texts.canaries) if texts.canaries else None
    with new_shelf(settings.dtype, settings.device) as shelf:
        given, target, reference = open_targets(model, against, shelf)
        members, others = texts.read(given.tokenizer, settings.seed, planted)
        context = Context(given, target, reference, members, others, planted, settings, extra)
        left_out = {name: lacks for name in wanted if (lacks := PARTS[name].lacks(context))}
        if left_out and (parts is not None or len(left_out) == len(wanted)):
            needs = "; ".join(f"{name} needs {' and '.join(lacks)}" for name, lacks in left_out.items())
            raise InputError(f"flexo-leak: nothing to attack with: {needs}. See flexo-leak --help.")
        found = Leak(target.name, _reads(given), left_out=left_out)
        for name in wanted:
            if name not in left_out:
                try:
                    found.rows.extend(PARTS[name].run(context))
                except InputError as error:  # hours of other parts are not thrown away
                    found.refused[name] = str(error)
    if found.refused and not found.rows:
        raise InputError("; ".join(found.refused.values()))
    return found


def _reads(given: Given) -> float | None:
    if given.kind != "pair":
        return None
    header = open_expert(given.path).header
    if isinstance(header.privacy, StatedPrivacy):  # it draws units at random, and counts padding as tokens
        return header.privacy.steps * header.privacy.sampling_rate
    own = header.data.tokens
    return header.training.tokens * (1 - header.training.public_share) / own if own else None
