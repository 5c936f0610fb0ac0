"""Training an expert with differential privacy: what of `trainers.expert.train` is done in another way, and why.

Everything in the file that depends on the owner's text is covered: the expert and its rows by noised gradients, what
the rows start from by a noised mean, counts by noise. Losses and router mass on own held-out text are left out of it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel

from flexmix.documents.units import units_of
from flexmix.domains.moments import Moments
from flexmix.packing.datamodule import BatchOptions, TextModule
from flexmix.packing.loaders import Seat, Stream, TrainLoader
from flexmix.packing.units import UnitWindows
from flexmix.packing.windows import Batch
from flexmix.tokens.shard import is_shard, prepare_shard, text_digest
from flexo.console import progress
from flexo.errors import InputError
from merge.formats.expert_header import Header
from trainers.data import packed_windows
from trainers.distributed import is_first
from trainers.expert.module import LitExpert
from trainers.expert.paired import PairOptions
from trainers.expert.train import ExpertTraining
from trainers.loop.run import Run
from trainers.loop.trainer import Metrics
from trainers.owner import OwnerOptions, find_owner
from trainers.privacy.guarantee import DOCUMENT, LEAST_UNITS, Counts, PrivacyOptions, check_sizes, guarantee
from trainers.privacy.ledger import enter, ledger_of
from trainers.privacy.module import GradientNoise, LitPrivateExpert
from trainers.privacy.moments import Whitening, private_moments, unit_means, usual_norm
from trainers.privacy.randomness import KEY_BYTES, Secret, destroy
from trainers.privacy.sampling import PoissonUnits, parts
from trainers.router.row_init import ROW_INITS, public_moments

NORM_UNITS = 256  # documents of public text that the clipping of moments is taken from


def private_training(options: PrivacyOptions) -> Callable[..., ExpertTraining]:
    """What `train_expert` takes as its `kind` to train with a guarantee."""
    return partial(PrivateTraining, privacy=options)


@dataclass
class PrivateTraining(ExpertTraining):
    """Raises `InputError` for settings that a guarantee does not cover."""

    privacy: PrivacyOptions

    def __post_init__(self) -> None:
        self._refuse_what_is_not_covered()
        trainer, data = self.run.trainer, self.run.data
        at_once = data.batch_size // (trainer.devices * trainer.nodes * trainer.accumulate)
        self._at_once = max(1, at_once)
        # gradients are clipped and accumulated by the module, unit by unit
        self.run = replace(self.run, trainer=replace(trainer, accumulate=1, clip=0.0))

    def settings(self) -> dict[str, Any]:
        return super().settings() | {"privacy": asdict(self.privacy) | {"ledger": None}}

    def texts(self, work: Path) -> TextModule:
        """Steps of units, once the run has been entered in the ledger: from here on it costs."""
        options, data, found, windows = self.privacy, self.run.data, self.owner, self.windows()
        exact = Counts.of(windows, options.windows)
        check_sizes(options, exact, data)  # before the noise of counts is drawn, and anything is spent
        self._secret = Secret.of(work, is_first())
        self._made = guarantee(options, exact.noised(self._secret, options.windows), data, self.reads_text)
        if is_first():
            ledger, digest = ledger_of(self.source, options), text_digest(self.source)
            said = enter(ledger, digest, self._secret.name, self.run.output.name, self._made)
            for line in [*self._made.table(), said]:
                self.run.tell(line)
        public, count = None, round(data.batch_size * data.public_share)
        if count:
            public = Stream(packed_windows(found.public["train"], found.anchor.folder, data), self.run.seed)
        self._units = PoissonUnits(windows, self._made.rate, options.windows, self._secret, public, count)
        measured = BatchOptions(data.batch_size, data.steps, self.run.seed, eval_windows=data.eval_windows)
        return _UnitTexts(self._units, found.held_out(data), measured)

    def own_moments(self, model: PreTrainedModel) -> list[Moments]:
        """The noised mean of own text, and the covariance of public text."""
        anchor, data, release = self.owner.anchor, self.run.data, self._made.moments
        assert release is not None, "planned with the guarantee"
        layers = range(anchor.architecture.num_hidden_layers)
        white = Whitening([public_moments(anchor, n, "privacy=dp", "Or use model.router_init=public.") for n in layers])
        shard = prepare_shard(self.owner.public["train"], anchor.folder, data.cache)
        reference = UnitWindows(shard, data.length)
        # of public text, so its sample may be known
        sample = PoissonUnits(reference, min(1.0, NORM_UNITS / reference.units), 1, Secret(bytes(KEY_BYTES)))
        own = replace(self._units, rate=release.rate, public=None, public_windows=0)
        with progress("measuring own text", None, "tokens") as advance:

            def means(units: PoissonUnits) -> Any:
                return unit_means(model, parts(units.batch(-1), self._at_once), advance)

            clip = usual_norm(means(sample), white)
            like = torch.zeros(len(layers), anchor.architecture.hidden_size)
            noise = self._secret.normal("moments", 0, like, release.noise * clip)
            return private_moments(means(own), white, clip, release.rate * self._made.counts.units, noise)

    def module(self, paired: PreTrainedModel, held_out_names: list[str]) -> LitExpert:
        run, made = self.run, self._made
        noise = GradientNoise(self._secret, made.noise, self.privacy.clip, made.units_per_step, self._at_once)
        own = self._units.windows
        return LitPrivateExpert(
            paired, run.optimizer, run.loss, run.data.steps, held_out_names, noise=noise, windows=own
        )

    def header(self, before: Metrics, after: Metrics, texts: TextModule) -> Header:
        whole, made = super().header(before, after, texts), self._made
        losses = replace(whole.training.losses, own_before=None, own_after=None)
        return replace(
            whole,
            training=replace(whole.training, losses=losses, router_mass=None),
            data=replace(whole.data, documents=made.counts.units, tokens=made.counts.windows * self.run.data.length),
            privacy=made.stated(self.run.data.steps),
        )

    def end(self, work: Path) -> None:
        """The key goes: with it, anybody could take the noise off again."""
        destroy(work)

    @property
    def source(self) -> Path:
        """The owner's text."""
        return self.owner.text.train[0].path

    def windows(self) -> UnitWindows:
        """The owner's text in windows, none with text of two units; raises `InputError` as `unit_windows` does."""
        data = self.run.data
        return unit_windows(self.source, self.owner.anchor.folder, self.privacy, data.length, data.cache)

    @property
    def reads_text(self) -> bool:
        """Whether router rows start from own text."""
        return ROW_INITS[self.model.router_init].reads_text

    def _refuse_what_is_not_covered(self) -> None:
        data, model, trainer = self.run.data, self.model, self.run.trainer
        found = {
            "data.mixture": len(self.owner.text.train) > 1,
            f"data.packing={data.packing}": data.packing != "concat",
            f"data.loss_on={data.loss_on}": data.loss_on != "all",
            "model.embedding": model.embedding is not None,
            "model.start": model.start is not None and not self.privacy.public_start,
            "run.strategy=fsdp": trainer.strategy == "fsdp",
            "run.compile": trainer.compile,
        }
        for name in (name for name, there in found.items() if there):
            raise InputError(f"privacy=dp with {name}: {WHY[name.partition('=')[0]]}")
        if not self.owner.public and (data.public_share or self.reads_text):
            raise InputError(
                "privacy=dp: there is no public text, by which own text is measured. Give it with data.public=FOLDER, "
                "or set data.public_share=0 model.router_init=public."
            )
        if self.run.logger is not None and is_first():
            self.run.tell("what is logged while training, and held-out losses, are not covered: they stay with you")


WHY = {
    "data.mixture": "somebody may be in several sources. Put them into one file, with a column that names the unit.",
    "data.packing": "a window would hold text of several units. Leave it out: each unit is packed on its own.",
    "data.loss_on": "not supported. Leave it out.",
    "model.embedding": "the embedding was measured without noise. Leave it out: rows start from a noised mean.",
    "model.start": "what that expert gives away comes on top. Start from an expert of public text alone, and say so "
    "with privacy.public_start=true.",
    "run.strategy": "a unit's gradient is not bounded over shards. Use ddp.",
    "run.compile": "not supported. Leave it out.",
}


def unit_windows(source: Path, anchor: Path, options: PrivacyOptions, length: int, cache: Path) -> UnitWindows:
    """The windows of an owner's text, none with text of two units.

    Raises `InputError` if units cannot be told, or if one has half of the text: what is protected could not be learned.
    """
    if options.unit != DOCUMENT and is_shard(source):
        raise InputError(
            f"{source}: privacy.unit={options.unit}, and what flexo-data prepare has made keeps text alone. Give the "
            "text itself, with its columns."
        )
    unit_S = None if options.unit == DOCUMENT else units_of(source, options.unit)
    windows = UnitWindows(prepare_shard(source, anchor, cache), length, unit_S, str(source))
    if windows.units < LEAST_UNITS:
        raise InputError(
            f"{source}: {windows.units:,} units by privacy.unit={options.unit}, at least {LEAST_UNITS} are needed: "
            "noise that hides one of so few hides all that they say. Bring more text, or name a smaller unit."
        )
    largest, total = int(windows.tokens_U.max()), int(windows.tokens_U.sum())
    if largest > total / 2:
        raise InputError(
            f"{source}: {windows.units:,} units by privacy.unit={options.unit}, and one has {largest / total:.0%} of "
            "the text. What privacy protects could not be learned; is it the right column?"
        )
    return windows


class _UnitLoader(TrainLoader):
    """The steps of a run; all devices have the whole of each, and take their units from it."""

    def __init__(self, units: PoissonUnits, steps: int) -> None:
        self.units, self.steps, self.step, self.seat = units, steps, 0, Seat()

    def batch(self, k: int, part: int = 0) -> Batch:
        return self.units.batch(k)

    def order(self) -> dict[str, Any]:
        units = self.units
        return {"units": units.windows.units, "rate": units.rate, "windows": units.at_most, "secret": units.secret.name}


class _UnitTexts(TextModule):
    def __init__(self, units: PoissonUnits, held_out: dict[str, Any], options: BatchOptions) -> None:
        self._units = units
        super().__init__(units.windows, held_out, options)

    def train_dataloader(self) -> TrainLoader:
        return self._train

    def _loader(self, rank: int, devices: int) -> TrainLoader:
        return _UnitLoader(self._units, self.options.steps)


def planned(owner: OwnerOptions, model: PairOptions, run: Run, options: PrivacyOptions) -> list[str]:
    """What a run would release and cost, from exact counts: lines for its owner alone. Nothing is spent.

    Raises `InputError` as the run would.
    """
    found, data = find_owner(owner, run), run.data
    training = PrivateTraining(found, owner.anchor, model, run, None, options)
    windows = training.windows()
    made = guarantee(options, Counts.of(windows, options.windows), data, training.reads_text)
    return [
        *made.table(),
        f"{windows.units:,} units of {windows.tokens_U.mean():,.0f} tokens on average; a step draws "
        f"{made.units_per_step:.1f} of them on average, each with probability {made.rate:.2g}, in {data.steps:,} steps",
        f"the noise on a step's mean gradient has {made.noise / made.units_per_step:.3g} times the norm that one unit "
        "may have, in every direction: more units a step, or fewer weights (model.rank), help most",
    ]
