"""The model under attack, and the anchor that it is compared with, from what was given on the command line."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from transformers import PreTrainedModel

from evals.matrix.measurement_cache import Key
from evals.matrix.model_loader import Given, Shelf, plan_pairs, read_given
from evals.scoring.held_out import PUBLIC
from flexo.console import progress
from flexo.errors import InputError
from inference.select import select_experts


@dataclass(frozen=True)
class Target:
    """A model that is attacked or compared with. `enter()` loads it, or finds it loaded, for the time of a `with`."""

    name: str
    key: Key  # of the weights and experts that run, for the cache
    enter: Callable[[], AbstractContextManager[PreTrainedModel]]


def open_targets(model: str, against: Path | None, shelf: Shelf) -> tuple[Given, Target, Target]:
    """The model as given, and as it and the anchor run.

    Args:
        model: `[NAME=]PATH`: an expert file, a merged folder, or a dense model.
        against: the anchor; None takes the public expert of a merged folder made of expert files, which is the anchor.
        shelf: what loads them.

    Raises:
        InputError: there is no such model, no anchor to compare with, or they do not go together.
    """
    given = read_given([model], against, "--against")
    attacked = next((one for one in given if one.kind != "anchor"), given[0])
    if attacked.kind == "anchor" or (len(given) == 1 and not attacked.holds_anchor):
        raise InputError(
            f"{attacked.path}: figures mean something beside those of the anchor alone, which everybody has. Give it: "
            "--against ANCHOR."
        )
    with progress("reading models", sum(one.nbytes for one in given)) as advance:
        digests = shelf.digests(given, advance)
    key = {"models": [digests[attacked.name]], "experts": attacked.experts, "dtype": shelf.dtype}
    if attacked.kind == "pair":
        made = plan_pairs([attacked])
        target = Target(attacked.name, key | {"anchor": made.base.about["digest"]}, partial(_pair, shelf, attacked))
    else:
        target = Target(attacked.name, key, partial(_whole, shelf, attacked.path))
    if len(given) == 1:
        alone = key | {"experts": [PUBLIC]}
        return attacked, target, Target("anchor", alone, partial(_chosen, shelf, attacked.path, [PUBLIC]))
    anchor = {"models": [digests[given[0].name]], "experts": None, "dtype": shelf.dtype}
    return attacked, target, Target(given[0].name, anchor, partial(_whole, shelf, given[0].path))


@contextmanager
def _whole(shelf: Shelf, path: Path) -> Iterator[PreTrainedModel]:
    yield shelf.models([path])[0]


@contextmanager
def _pair(shelf: Shelf, expert: Given) -> Iterator[PreTrainedModel]:
    yield shelf.merged(plan_pairs([expert]))


@contextmanager
def _chosen(shelf: Shelf, path: Path, experts: Sequence[str]) -> Iterator[PreTrainedModel]:
    (model,) = shelf.models([path])
    with select_experts(model, experts, len(experts)):
        yield model
