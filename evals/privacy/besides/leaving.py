"""After leaving, and without a right to an expert: exactly the figures of a model that never had it.

`never` is a folder that was merged without the expert. The model without it is run in up to three ways:

left           as `flexo-optout` writes it, or as it was given, if the expert has left it already
not entitled   the whole model under `select_experts` without the expert

Each is run as it is, and with its router forced onto every expert that stays, alone: in other mixtures of experts,
what was "unlearned" by changing the router comes back then (GRIP, arXiv 2601.16905). Every document's loss must be
that of `never` under the same force, to the bit.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from transformers import PreTrainedModel

from evals.privacy.attacks.part import Context, Part, Row
from evals.privacy.attacks.token_scores import Scores, score_documents
from evals.privacy.statistics.detection import auc, bootstrap
from flexo.console import progress
from flexo.errors import InputError
from inference.load import load_model
from inference.select import expert_names, select_experts
from merge.planning.membership import opt_out

Both = tuple[Scores, Scores]  # of members and of non-members

UNEQUAL = "documents whose loss is not that of a model that never had it"
AUC = "AUC, loss less the anchor's"


def run(context: Context) -> list[Row]:
    """Documents with another loss, and how well members are told apart, in every way and under every force.

    Raises:
        InputError: `never` has an expert that the model has not, or was merged with other settings.
    """
    assert context.extra.never is not None and context.given.experts is not None, "Part.needs"
    assert context.members is not None and context.non_members is not None, "Part.needs"
    text = (context.members.text, context.non_members.text)
    never = _like(context, context.extra.never)
    stay = expert_names(never)
    gone = _gone(context, stay)
    forces = [stay, *([name] for name in stay)]
    before, ways = [context.given.experts, gone[:1]] if gone else [], _ways(context, gone)
    runs = 1 + len(before) + (1 + len(ways)) * len(forces)
    with progress("scoring documents", runs * (text[0].tokens + text[1].tokens), "tokens") as advance:

        def measured(model: PreTrainedModel, experts: Sequence[str] | None) -> Both:
            with select_experts(model, experts) if experts else nullcontext():
                return score_documents(model, text[0], advance), score_documents(model, text[1], advance)

        with context.reference.enter() as anchor:
            base = measured(anchor, None)
        expected = [measured(never, force) for force in forces]
        rows = []
        with context.target.enter() as model:
            for force in before:
                rows.append(_auc(measured(model, force), base, f"with {gone[0]}{_name(force, context.given.experts)}"))
        for wanted, force in zip(expected, forces, strict=True):
            rows.append(_auc(wanted, base, f"never had it{_name(force, stay)}"))
        for way, enter in ways.items():
            with enter() as model:
                for force, wanted in zip(forces, expected, strict=True):
                    found, group = measured(model, force), way + _name(force, stay)
                    rows += [Row("leaving", UNEQUAL, _unequal(found, wanted), group=group), _auc(found, base, group)]
    return rows


def _ways(context: Context, gone: Sequence[str]) -> dict[str, Callable[[], Any]]:
    if not gone:
        return {"left": context.target.enter}

    @contextmanager
    def left() -> Iterator[PreTrainedModel]:
        with TemporaryDirectory(prefix="flexo-leak-") as name:
            folder = Path(name) / "model"
            opt_out(context.given.path, folder, drop=gone)
            yield _like(context, folder)

    return {"left": left, "not entitled": context.target.enter}


def _gone(context: Context, stay: Sequence[str]) -> list[str]:
    """Who is not in `never`; in the model's order."""
    had, never = context.given.experts or [], context.extra.never
    gone = [name for name in had if name not in stay]
    if [name for name in had if name in stay] != list(stay):
        raise InputError(
            f"{never}: has the experts {', '.join(stay)}; expected those of {context.given.path} "
            f"({', '.join(had)}) in the same order, without some. Merge them so."
        )
    return gone


def _like(context: Context, folder: Path) -> PreTrainedModel:
    """A folder's model, in the dtype and on the device of the one that is attacked."""
    with context.target.enter() as model:
        dtype, device = str(model.dtype).removeprefix("torch."), str(model.device)
    return load_model(folder, dtype, device)[0]


def _unequal(found: Both, wanted: Both) -> int:
    pairs = [pair for one, other in zip(found, wanted, strict=True) for pair in zip(one.nats, other.nats, strict=True)]
    return sum(one != other for one, other in pairs)


def _auc(found: Both, base: Both, group: str) -> Row:
    members, others = (other.loss_S - one.loss_S for one, other in zip(found, base, strict=True))
    estimate = bootstrap(auc, members, others)
    return Row("leaving", AUC, estimate.value, estimate.low, estimate.high, reference=0.5, group=group)


def _name(force: Sequence[str], all_of: Sequence[str]) -> str:
    return "" if list(force) == list(all_of) else f", forced onto {force[0]}"


PART = Part("leaving", ("--source", "a merged folder", "--never"), run)
