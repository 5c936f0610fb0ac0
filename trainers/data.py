"""From files of text to the data module of a run: tokenise once, cut into windows, mix own and public."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, ClassVar, get_args

from flexmix.documents.corpus import HubSource, find_corpus, require_text, training_text
from flexmix.packing.best_fit import BestFit
from flexmix.packing.loaders import EvalLoader, TrainLoader
from flexmix.packing.mixture import WeightedWindows, mix
from flexmix.packing.windows import Packed, Packing, Windows
from flexmix.tokens.shard import prepare_shard
from flexo.errors import InputError


@dataclass(frozen=True)
class WeightedText:
    """One source of an owner who has several: a corpus file or folder, and its weight (None: its size)."""

    __pydantic_config__: ClassVar[dict[str, str]] = {"extra": "forbid"}  # a mistyped key in a list of settings

    path: Path
    weight: float | None = None


@dataclass(frozen=True)
class OwnText:
    """Where an owner's documents are: training text from one place or more, held-out text, and a sentence about it."""

    train: tuple[WeightedText, ...]
    test: Path | None
    said: str


def find_own_text(
    name: str,
    corpora: Path,
    train: Path | None,
    test: Path | None,
    hub: HubSource | None,
    mixture: tuple[WeightedText, ...] | None = None,
) -> OwnText:
    """The text of a domain: of the sources of `mixture`, or what `find_corpus` finds for the other arguments.

    A source that is a folder stands for the `train` in it, if there is one; held out is `test` alone then.

    Raises:
        InputError: there is no text to be had, or both `train` and `mixture` are given.
    """
    if not mixture:
        corpus = find_corpus(name, corpora, train, test, hub)
        return OwnText((WeightedText(corpus.train),), corpus.test, corpus.said)
    if train is not None:
        raise InputError(
            f"domain {name!r}: both domain.train={train} and data.mixture. List all sources in data.mixture, and set "
            "domain.train=null."
        )
    found = []
    for source in mixture:
        path = training_text(source.path)
        require_text(path)
        found.append(WeightedText(path, source.weight))
    if test is not None:
        require_text(test)
    said = f"a mixture of {', '.join(str(source.path) for source in found)}, held out: {test or 'nothing'}"
    return OwnText(tuple(found), test, said)


@dataclass(frozen=True)
class DataOptions:
    """How text becomes batches."""

    tokens: int  # seen in training, in all
    length: int = 256  # tokens in a window
    batch_size: int = 8  # windows per step, over all devices
    packing: Packing = "concat"  # of training text; best_fit cuts fewer documents and pads
    public_share: float = 0.0  # of the windows, for experts
    mixture: tuple[WeightedText, ...] | None = None  # an owner's sources, in place of the domain's training text
    temperature: float = 1.0  # of the mixture; larger evens its shares out
    eval_windows: int = 64  # of each held-out set
    moment_windows: int = 512  # read to know a domain from inside the anchor
    cache: Path = Path("data/tokens")  # token shards, kept between runs

    def __post_init__(self) -> None:
        if min(self.tokens, self.length, self.batch_size, self.moment_windows) < 1 or not 0 <= self.public_share < 1:
            raise InputError(
                f"data: tokens {self.tokens}, length {self.length}, batch_size {self.batch_size} and moment_windows "
                f"{self.moment_windows} must be positive, and public_share {self.public_share} from 0 up to 1."
            )
        if self.packing not in get_args(Packing):
            raise InputError(f"data.packing: {self.packing!r}, expected {' or '.join(get_args(Packing))}.")

    @property
    def tokens_per_step(self) -> int:
        return self.length * self.batch_size

    @property
    def steps(self) -> int:
        return max(1, self.tokens // self.tokens_per_step)

    def settings(self) -> dict[str, Any]:
        """What decides about the result; where shards and sources are kept does not."""
        weights = [source.weight for source in self.mixture or ()]
        return {name: value for name, value in asdict(self).items() if name != "cache"} | {"mixture": weights}

    def windows(self, source: Path, model: Path) -> Windows:
        """The windows of a corpus file under the tokenizer of a model folder, plainly cut: what is measured on."""
        return Windows(prepare_shard(source, model, self.cache), self.length, str(source))

    def training_windows(self, source: Path, model: Path) -> Packed:
        """The windows of a corpus file as `packing` says: what is trained on."""
        if self.packing == "best_fit":
            return BestFit(prepare_shard(source, model, self.cache), self.length)
        return self.windows(source, model)

    def sources(self, text: OwnText, model: Path) -> list[WeightedWindows]:
        """An owner's windows to train on, one source or more."""
        return [WeightedWindows(self.training_windows(part.path, model), part.weight) for part in text.train]

    def measured(self, text: OwnText, model: Path) -> EvalLoader | TrainLoader:
        """What a domain is known by: `moment_windows` of one source, or as many of a mixture's order."""
        plain = [WeightedWindows(self.windows(part.path, model), part.weight) for part in text.train]
        if len(plain) == 1:
            return EvalLoader(plain[0].windows, self.batch_size, self.moment_windows)
        count = min(self.moment_windows, sum(len(source.windows) for source in plain))
        steps = max(1, count // self.batch_size)
        return TrainLoader(mix(plain, self.temperature, 0), None, 0.0, self.batch_size, steps)
