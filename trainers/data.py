"""From an owner's files of text to windows of tokens: where the text is, how it is cut, what is kept of it."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, ClassVar, get_args

from flexmix.documents.corpus import HubSource, find_corpus, require_text, training_text
from flexmix.packing.answers import LossOn, check_loss_on
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
    loss_on: LossOn = "all"  # of an owner's text; assistant: of conversations, the answers alone
    public_share: float = 0.0  # of the windows, for experts
    mixture: tuple[WeightedText, ...] | None = None  # an owner's sources, in place of the domain's training text
    temperature: float = 1.0  # of the mixture; larger evens its shares out
    eval_windows: int = 64  # of each held-out set
    moment_windows: int = 512  # read to measure what routers see of a text
    cache: Path = Path("data/tokens")  # token shards, kept between runs

    def __post_init__(self) -> None:
        if min(self.tokens, self.length, self.batch_size, self.moment_windows) < 1 or not 0 <= self.public_share < 1:
            raise InputError(
                f"data: tokens {self.tokens}, length {self.length}, batch_size {self.batch_size} and moment_windows "
                f"{self.moment_windows} must be positive, and public_share {self.public_share} from 0 up to 1."
            )
        if self.packing not in get_args(Packing):
            raise InputError(f"data.packing: {self.packing!r}, expected {' or '.join(get_args(Packing))}.")
        check_loss_on(self.loss_on)

    @property
    def tokens_per_step(self) -> int:
        return self.length * self.batch_size

    @property
    def steps(self) -> int:
        return max(1, self.tokens // self.tokens_per_step)

    @property
    def trained_tokens(self) -> int:
        """Tokens of all steps together: `tokens`, down to whole steps, and one step at least."""
        return self.steps * self.tokens_per_step

    def settings(self) -> dict[str, Any]:
        """The settings that decide about a result. Where sources and token shards lie does not."""
        weights = [source.weight for source in self.mixture or ()]
        return {name: value for name, value in asdict(self).items() if name != "cache"} | {"mixture": weights}


def plain_windows(text: Path, model: Path, data: DataOptions, loss_on: LossOn = "all") -> Windows:
    """The windows of a corpus file, plainly cut: what is measured on.

    Args:
        text: a corpus file, or a token shard.
        model: the folder whose tokenizer makes tokens of it. That is done once; shards are kept in `data.cache`.
        data: the length of a window, and where shards are kept.
        loss_on: what has labels; an owner's text alone follows `data.loss_on`.
    """
    return Windows(prepare_shard(text, model, data.cache), data.length, str(text), loss_on)


def packed_windows(text: Path, model: Path, data: DataOptions, loss_on: LossOn = "all") -> Packed:
    """The windows of a corpus file as `data.packing` says: what is trained on. Arguments as of `plain_windows`."""
    if data.packing == "best_fit":
        return BestFit(prepare_shard(text, model, data.cache), data.length, str(text), loss_on)
    return plain_windows(text, model, data, loss_on)


def own_sources(text: OwnText, model: Path, data: DataOptions) -> list[WeightedWindows]:
    """An owner's windows to train on, of one source or more, tokenised as a model folder does it."""
    return [WeightedWindows(packed_windows(part.path, model, data, data.loss_on), part.weight) for part in text.train]


def moment_loader(text: OwnText, model: Path, data: DataOptions) -> EvalLoader | TrainLoader:
    """What a domain's moments are measured on: `data.moment_windows` of one source, or as many of a mixture's order."""
    plain = [WeightedWindows(plain_windows(part.path, model, data), part.weight) for part in text.train]
    if len(plain) == 1:
        return EvalLoader(plain[0].windows, data.batch_size, data.moment_windows)
    count = min(data.moment_windows, sum(len(source.windows) for source in plain))
    steps = max(1, count // data.batch_size)
    return TrainLoader(mix(plain, data.temperature, 0), None, 0.0, data.batch_size, steps)
