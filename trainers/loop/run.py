"""One training run: its options, where its result goes, and what all four trainings do at the start and at the end.

    run = Run(Path("anchor"), data, optimizer, loss, trainer)
    with run.work_folder(run.settings | {"text": digests}) as work:
        texts = run.texts(windows, {"public": held_out_windows})
        run.trainer.prepare(model)
        lit = LitAnchor(model, run.optimizer, run.loss, run.data.steps, texts.held_out_names)
        before, after = run.fit(lit, texts, work, "training the anchor")
        ...                                             # write what was trained to run.output

The work folder is what lets the same command go on after an interruption: see `trainers.loop.run_folder`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import lightning as L  # noqa: N812 - the name everyone uses
import torch

from flexmix.packing.datamodule import BatchOptions, TextModule
from flexmix.packing.mixture import WeightedWindows
from flexmix.packing.windows import Packed
from flexo.atomic_files import refuse_occupied
from flexo.cpu_threads import threads_of_one
from flexo.errors import InputError
from flexo.verbosity import note
from trainers.data import DataOptions
from trainers.distributed import is_first
from trainers.loop.callbacks import TokenProgress
from trainers.loop.gpu_specs import peak_flops
from trainers.loop.module import LitAnchor, LossOptions
from trainers.loop.optimizer import OptimizerOptions
from trainers.loop.run_folder import CHECKPOINT, kept_settings, work_folder
from trainers.loop.trainer import Metrics, TrainerOptions, fit, make_trainer, resolve_precision


@dataclass(frozen=True)
class Run:
    """What the trainings of an anchor, an expert, a router and a whole model have in common."""

    output: Path  # the file or folder to make; the work folder is beside it
    data: DataOptions
    optimizer: OptimizerOptions
    loss: LossOptions
    trainer: TrainerOptions
    logger: Any = None  # makes a logger of Lightning's from `save_dir`; None: no metrics on disk
    seed: int = 0  # of the order of windows, and of weights and rows that start at random
    resume: bool = True  # go on with an unfinished run of the same settings; False starts over
    say: Callable[[str], None] = print  # is given a line each about what is read

    def tell(self, line: str) -> None:
        """Says a line, on the first device alone."""
        if is_first():
            self.say(line)

    def check_whole(self, what: str) -> None:
        """What all trainings that write a model folder refuse; `what` is trained, with its article.

        Raises `InputError` if the output folder is not free, or the model would be spread over devices.
        """
        refuse_occupied(self.output)
        if self.trainer.strategy == "fsdp":
            raise InputError(f"run.strategy=fsdp: {what} is trained whole on every device. Use ddp.")

    @cached_property
    def precision(self) -> str:
        """Of computation. What `auto` means is found out as a run begins; it goes on in that elsewhere, and says so."""
        found = resolve_precision(self.trainer.precision, self.trainer.accelerator)
        begun = kept_settings(self.output).get("precision") if self.resume else None
        if self.trainer.precision != "auto" or begun in (None, "auto", found):
            return found
        if is_first():
            note(f"run.precision=auto would be {found} here. This run was begun in {begun}, and goes on in that.")
        return str(begun)

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of computation, in which what is frozen is held."""
        return torch.bfloat16 if self.precision.startswith("bf16") else torch.float32

    @property
    def settings(self) -> dict[str, Any]:
        """The part of a run's settings that all trainings have: what decides about the result."""
        return {
            "data": self.data.settings(),
            "optimizer": asdict(self.optimizer),
            "loss": asdict(self.loss),
            "precision": self.precision,
            "seed": self.seed,
        }

    @property
    def extent(self) -> dict[str, Any]:
        """How long it trains, and from which seed: what every result says of it."""
        return {"tokens": self.data.trained_tokens, "steps": self.data.steps, "seed": self.seed}

    def seed_everything(self) -> None:
        """Seeds all random numbers of this process."""
        L.seed_everything(self.seed, verbose=False)

    @contextmanager
    def work_folder(self, settings: dict[str, Any]) -> Iterator[Path]:
        """The folder of this run while it is unfinished; random numbers are seeded, and at the end no checkpoint stays.

        Raises `InputError` as `run_folder.work_folder` does: held by another process, or of other settings.
        """
        self.seed_everything()
        with work_folder(self.output, settings, self.resume) as work:
            yield work
            if is_first():
                (work / CHECKPOINT).unlink(missing_ok=True)

    def texts(
        self,
        train: Packed | Sequence[WeightedWindows],
        held_out: dict[str, Packed],
        public: Packed | None = None,
        temperature: float = 1.0,
    ) -> TextModule:
        """The batches of this run.

        Args:
            train: windows to train on, or several weighted sources of them.
            held_out: name -> windows to measure on, before and after.
            public: public windows, mixed in by `data.public_share`.
            temperature: of the mixture of sources.
        """
        options = BatchOptions(
            batch_size=self.data.batch_size,
            steps=self.data.steps,
            seed=self.seed,
            public_share=0.0 if public is None else self.data.public_share,
            temperature=temperature,
            eval_windows=self.data.eval_windows,
            parts=self.trainer.accumulate,
        )
        return TextModule(train, held_out, options, public)

    def fit(
        self, lit: LitAnchor, texts: TextModule, work: Path, label: str, flops_per_token: float | None = None
    ) -> tuple[Metrics, Metrics]:
        """Trains to the last step, from the checkpoint in `work` on if there is one.

        Args:
            lit: what is trained.
            texts: its batches.
            work: this run's work folder.
            label: of the bar on a terminal.
            flops_per_token: of a training step, for the log alone; None leaves it out.

        Returns:
            Held-out metrics before the first step and after the last.
        """
        if (threads := threads_of_one(self.trainer.devices)) is not None:
            torch.set_num_threads(threads)
        peak = peak_flops(self.trainer.devices * self.trainer.nodes)
        progress = TokenProgress(label, self.data.tokens_per_step, lit.steps, flops_per_token, peak)
        trainer = make_trainer(replace(self.trainer, precision=self.precision), work, self.logger, progress)
        return fit(trainer, lit, texts, work / CHECKPOINT)
