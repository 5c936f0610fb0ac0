"""FlexMix's eight sets: what each held in the paper, and a stand-in on the hub that anybody can read."""

from __future__ import annotations

from dataclasses import dataclass

from flexmix.documents.corpus import HubSource
from flexmix.documents.source import Source
from flexo.config_dir import config_dir
from flexo.errors import InputError

SETS = ("public", "news", "creative", "code", "academic", "educational", "math", "reddit")
PREFIX = "flexmix:"


@dataclass(frozen=True)
class MixSet:
    """One of the eight sets."""

    name: str
    title: str
    hub: HubSource
    tokens: float  # of the paper's set
    size: str  # of the stand-in, as its card or paper says
    slice: str  # what of the stand-in is taken
    licence: str  # of the stand-in
    checked: str  # how far we know that the stand-in is as described


def load_set(name: str) -> MixSet:
    """A set by its name, from `configs/flexmix/`; raises `InputError` for another name."""
    from omegaconf import OmegaConf

    if name not in SETS:
        raise InputError(f"{PREFIX}{name}: there is no such set. There are: {', '.join(SETS)}.")
    about = OmegaConf.to_container(OmegaConf.load(config_dir() / "flexmix" / f"{name}.yaml"))
    assert isinstance(about, dict), f"configs/flexmix/{name}.yaml is no mapping"
    return MixSet(name=name, title=about["title"], hub=HubSource(**about["hub"]), **about["flexmix"])


def find_source(place: str) -> Source:
    """A source by place: `flexmix:NAME` is a set's stand-in, anything else is as in `flexmix.documents.reading`."""
    if place.startswith(PREFIX):
        return load_set(place.removeprefix(PREFIX)).hub.source
    return Source(place)


def mix_sets() -> list[MixSet]:
    """All eight sets."""
    return [load_set(name) for name in SETS]


def print_sets() -> None:
    """The eight sets, each with its stand-in."""
    print("tokens of each set in the paper; a stand-in on the hub, what of it is taken, its size and its licence\n")
    for found in mix_sets():
        where = ", ".join(filter(None, (found.hub.id, found.hub.subset, f"split {found.hub.split}")))
        print(f"{found.name:12} {found.tokens / 1e9:>8,.1f}B  {found.title}")
        print(f"{'':24}{where}\n{'':24}{found.slice}; of {found.size}; {found.licence} ({found.checked})")
    print("\nflexo-data prepare flexmix:NAME -o DIR --tokenizer ANCHOR [--documents N]")
