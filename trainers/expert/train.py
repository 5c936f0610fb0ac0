"""Training one owner's expert against a frozen anchor, and writing it as an expert file.

The owner's text is read here and nowhere else; what leaves is one file, and `train_expert` returns what it contains.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, PreTrainedModel

from flexmix.domains.embedding import read_embedding
from flexmix.domains.moments import Moments
from flexmix.packing.datamodule import TextModule
from flexmix.tokens.shard import text_digest
from flexo.console import progress
from flexo.errors import InputError
from flexo.rooms import versions
from merge.formats.architecture import FFN, ROUTER_WEIGHT, anchor_ffn, expert_ffn
from merge.formats.expert_file import ExpertFile, open_expert, write_expert
from merge.formats.expert_header import AnchorReference, Header, Losses, Training
from merge.planning.base_model import AnchorBase
from merge.planning.compatibility import check_belongs
from trainers.data import OwnText, moment_loader
from trainers.distributed import is_first, measuring_device
from trainers.expert.cost_plan import load_of, plan_cost
from trainers.expert.meta_init import WeightsOnDisk, blank_model
from trainers.expert.module import LitExpert
from trainers.expert.paired import PairOptions, expert_state, pair
from trainers.loop.curves import draw_curves
from trainers.loop.run import Run
from trainers.loop.run_folder import keep_result, kept_result, work_of
from trainers.loop.trainer import Metrics
from trainers.owner import Owner, OwnerOptions, count_own, find_owner
from trainers.router.phatgoose import STANDARDISE, standardised_row
from trainers.router.row_init import (
    DISCRIMINANT,
    ROW_INITS,
    RowBasis,
    embedded_rows,
    public_moments,
    router_input_moments,
    starting_rows,
)

ROUTER = re.compile(r"layers\.\d+\.router\.(weight|bias)")
EXISTS = "this expert exists already. Choose another output, or pass overwrite=true."
SOFTWARE = ("flexo", "torch", "transformers", "lightning")


@dataclass(frozen=True)
class Result:
    """What a training run made."""

    path: Path
    header: Header
    text: OwnText
    public: str  # which public text was used
    curves: Path | None  # a picture of the run
    before: Metrics  # held-out, before training
    after: Metrics  # and after it


def train_expert(
    owner: OwnerOptions,
    model: PairOptions,
    run: Run,
    overwrite: bool = False,
    kind: Callable[..., ExpertTraining] | None = None,
) -> Result | None:
    """Trains the expert of `owner` and writes it to the file `run.output`.

    Args:
        owner: whose text it is, and against which anchor it is trained.
        model: the pair of public network and expert, and its router.
        run: everything else.
        overwrite: replace an expert file that stands at the output.
        kind: another way of training, called as `ExpertTraining` is; None: that one.

    Returns:
        What was made; None on every device of a run but the first.

    A file at the output that this very run has made, before it was stopped or put back into a queue, is the result.

    Raises:
        InputError: text, anchor or settings are unusable, or another file is at the output. Nothing was written then.
    """
    output = run.output
    if output.is_dir():
        raise InputError(f"{output}: a folder stands where the expert file should go. Choose another output.")
    exists = output.exists() and not overwrite
    if exists and not (run.resume and kept_result(output)):
        raise InputError(f"{output}: {EXISTS}")
    found = find_owner(owner, run)
    training = _prepare(found, owner.anchor, model, run, kind or ExpertTraining)
    run, text, public, settings = training.run, found.text, str(found.reference or "none"), training.settings()
    if exists:
        header = _made_before(run, settings)
        training.end(work_of(output))
        run.tell(f"{output} was made before by this very run; nothing to do")
        return Result(output, header, text, public, None, {}, {}) if is_first() else None
    with run.work_folder(settings) as work:
        texts = training.texts(work)
        paired = training.paired_model()
        run.trainer.prepare(paired)
        lit = training.module(paired, texts.held_out_names)
        load = load_of(run, model, training.first_layer)
        flops = plan_cost(found.anchor.architecture, load).flops_per_token
        before, after = run.fit(lit, texts, work, f"training {found.domain.name}", flops)
        trained = expert_state(lit.model, found.anchor.weights.dtype(anchor_ffn(0, FFN[0])))
        if not is_first():
            return None
        header = write_expert(
            output,
            training.header(before, after, texts),
            training.shipped(trained),
            replace=overwrite,
            before=lambda whole: keep_result(work, result_of(settings, whole)),
        )
        training.end(work)
        curves = draw_curves(work, f"expert {found.domain.name}")
    return Result(output, header, text, public, curves, before, after)


def result_of(settings: dict[str, Any], header: Header) -> dict[str, Any]:
    """What identifies the file that a run with these settings makes."""
    result = {"settings": settings, "tensors": {name: tensor.sha256 for name, tensor in header.tensors.items()}}
    as_kept: dict[str, Any] = json.loads(json.dumps(result))
    return as_kept


def _made_before(run: Run, settings: dict[str, Any]) -> Header:
    """The header of the file that stands at the output; raises `InputError` unless a run of these settings made it."""
    output = run.output
    header, kept = open_expert(output).header, kept_result(output)
    if kept and run.trainer.precision == "auto":  # it may have been made on other hardware
        settings = settings | {"precision": header.training.precision}
    if kept != result_of(settings, header):
        raise InputError(f"{output}: {EXISTS}")
    return header


def _prepare(
    owner: Owner, anchor_name: str, model: PairOptions, run: Run, kind: Callable[..., ExpertTraining]
) -> ExpertTraining:
    """What training one expert starts from; raises `InputError` for what could not be trained or shipped."""
    model.check_layers(owner.anchor.architecture.num_hidden_layers)
    if model.standardise:
        public_moments(owner.anchor, 0, STANDARDISE)
    if ROW_INITS[model.router_init].reads_moments:  # before own text is measured, which may take long
        public_moments(owner.anchor, 0, *DISCRIMINANT)
    begun = None if model.start is None else _begun(model.start, owner)
    run = replace(run, optimizer=run.optimizer.for_anchor(owner.anchor.public_bits))
    training = kind(owner, anchor_name, model, run, begun)
    if model.embedding is not None:
        read_embedding(Path(model.embedding))
    return training


def _begun(path: Path, owner: Owner) -> ExpertFile:
    """The expert file to go on from; raises `InputError` unless it is of this domain and anchor."""
    begun = open_expert(path)
    if begun.domain != owner.domain.name:
        raise InputError(f"{path}: the expert of {begun.domain}, and this run is of {owner.domain.name}.")
    check_belongs(begun, AnchorBase(owner.anchor, owner.anchor.folder.name, owner.anchor.digest))
    if begun.header.factored:
        raise InputError(
            f"{path}: holds factors, and training goes on from whole weights. Write those first: "
            f"flexo-compress {path} --whole -o FILE"
        )
    return begun


@dataclass
class ExpertTraining:
    """The training of one expert, before and after Lightning has it: its settings, its model, what its file holds.

    `trainers.privacy.training` does some of it in another way.
    """

    owner: Owner
    anchor_name: str  # as it was given
    model: PairOptions
    run: Run
    begun: ExpertFile | None  # the expert file that it goes on from

    @property
    def first_layer(self) -> int:
        """The first layer whose expert learns."""
        return self.model.first_trained_layer(self.owner.anchor.first_layer)

    @property
    def spread(self) -> bool:
        """Whether the model will be spread over devices."""
        return self.run.trainer.strategy == "fsdp"

    def settings(self) -> dict[str, Any]:
        """What decides about the result."""
        anchor, digests = self.owner.anchor, self.owner.text_digests()
        if self.begun is not None:
            digests["start"] = text_digest(self.begun.path)
        if self.model.embedding is not None:
            digests["embedding"] = text_digest(Path(self.model.embedding))
        settings = {"domain": self.owner.domain.name, "anchor": anchor.digest, "router": anchor.router_digest}
        return settings | {"model": asdict(self.model) | {"start": None}} | self.run.settings | {"text": digests}

    def texts(self, work: Path) -> TextModule:
        """The batches; `work` is the folder of the run."""
        return self.owner.texts(self.run)

    def module(self, paired: PreTrainedModel, held_out_names: list[str]) -> LitExpert:
        """What Lightning trains."""
        run = self.run
        fill = WeightsOnDisk(paired, self.owner.anchor.weights, self.begun).fill if self.spread else None
        return LitExpert(paired, run.optimizer, run.loss, run.data.steps, held_out_names, fill)

    def end(self, work: Path) -> None:
        """Called when the file is there."""

    def paired_model(self) -> PreTrainedModel:
        """The anchor with a pair in every layer, the router rows started from the owner's text.

        What is frozen is held in the dtype of computation, once; the expert starts from the anchor's own bits, in
        float32. A model that will be spread over devices comes without values (`trainers.expert.meta_init`).
        """
        anchor, begun, dtype = self.owner.anchor, self.begun, self.run.dtype
        model: Any = None
        if not self.spread or self.model.embedding is None:
            model = AutoModelForCausalLM.from_pretrained(anchor.folder, dtype=dtype)
        rows = self._rows(model)
        if self.spread:
            model = blank_model(anchor.folder, dtype)  # the measured one goes: its values are on disk
        start: Callable[[int, str], torch.Tensor] | None = None
        if not self.spread and begun is not None:
            start = lambda n, part: begun.tensor(expert_ffn(n, part))  # noqa: E731
        elif not self.spread and dtype != torch.float32:
            start = lambda n, part: anchor.weights.tensor(anchor_ffn(n, part))  # noqa: E731
        public_rows = [anchor.public_row(n) for n in range(len(rows))]
        return pair(model, public_rows, rows, self.model, anchor.first_layer, start)

    def _rows(self, model: PreTrainedModel) -> list[torch.Tensor]:
        """What the owner's router rows start from, [D] per layer; `model` is the anchor that own text is read with."""
        init, anchor = self.model.router_init, self.owner.anchor
        scale, shrinkage = self.model.router_scale, self.model.router_shrinkage
        basis = RowBasis(anchor, scale, shrinkage, self.run.seed, begun=self.begun)
        if not ROW_INITS[init].reads_text:
            return starting_rows(init, basis)
        if self.model.embedding is not None:
            return embedded_rows(Path(self.model.embedding), init, basis)
        return starting_rows(init, replace(basis, own=self.own_moments(model)))

    def own_moments(self, model: PreTrainedModel) -> list[Moments]:
        """What router rows start from, measured on own text with the anchor, layer by layer."""
        data = self.run.data
        loader = moment_loader(self.owner.text, self.owner.anchor.folder, data)
        with progress("measuring own text", len(loader) * data.tokens_per_step, "tokens") as advance:
            return router_input_moments(model, loader, advance, measuring_device(self.run.trainer.accelerator))

    def shipped(self, trained: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """The tensors of the expert file: what was trained, and what stays beside it."""
        anchor, first, state = self.owner.anchor, self.first_layer, dict(trained)
        for n in range(first):
            state |= {expert_ffn(n, part): anchor.weights.tensor(anchor_ffn(n, part)) for part in FFN}
        if self.begun is not None and not self.model.train_expert:
            state |= {name: self.begun.tensor(name) for name in state if not ROUTER.fullmatch(name)}
        if self.model.standardise:
            rows = {ROUTER_WEIGHT.format(n=n): n for n in range(first, anchor.architecture.num_hidden_layers)}
            state |= {name: standardised_row(anchor, n, state[name]).to(state[name].dtype) for name, n in rows.items()}
        return state

    def header(self, before: Metrics, after: Metrics, texts: TextModule) -> Header:
        """What the expert file says of itself, given held-out metrics before and after training."""
        domain, anchor, name = self.owner.domain, self.owner.anchor, self.anchor_name
        if Path(name).is_dir():
            name = Path(name).resolve().name  # where it lies on this machine is private
        return Header(
            domain=domain.name,
            title=domain.title or domain.name,
            licence=domain.licence,
            contact=domain.contact,
            anchor=AnchorReference(
                name=name,
                digest=anchor.digest,
                tokenizer_digest=anchor.tokenizer_digest,
                router_digest=anchor.router_digest,
                architecture=anchor.architecture,
            ),
            training=self._training(before, after),
            data=count_own(texts),
            privacy=None,
            software=versions(SOFTWARE),
        )

    def _training(self, before: Metrics, after: Metrics) -> Training:
        """What the header says of training; where it went on from an expert, tokens and steps of both times."""
        run, model = self.run, self.model
        earlier = None if self.begun is None else self.begun.header.training
        return Training(
            tokens=run.data.trained_tokens + (earlier.tokens if earlier else 0),
            steps=run.data.steps + (earlier.steps if earlier else 0),
            seed=run.seed,
            precision=run.precision,
            learning_rate=run.optimizer.peak,
            weight_decay=run.optimizer.weight_decay,
            router_init="phatgoose" if model.standardise else model.router_init,
            public_share=run.data.public_share,
            losses=Losses(
                own_before=earlier.losses.own_before if earlier else before.get("own/loss"),
                own_after=after.get("own/loss"),
                public_before=earlier.losses.public_before if earlier else before.get("public/loss"),
                public_after=after.get("public/loss"),
            ),
            router_mass=None if model.standardise else after.get("own/router_mass"),  # the row that ships is another
        )
