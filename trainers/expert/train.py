"""Training one owner's expert against a frozen anchor, and writing it as an expert file.

The owner's text is read here and nowhere else; what leaves is one file, and `train_expert` returns what it contains.
"""

from __future__ import annotations

import importlib.metadata
import json
import re
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import lightning as L  # noqa: N812 - the name everyone uses
import torch
from transformers import AutoModelForCausalLM, PreTrainedModel

from flexmix.domains.embedding import read_embedding
from flexmix.tokens.shard import text_digest
from flexo.console import progress
from flexo.errors import InputError
from merge.formats.anchor_folder import Anchor
from merge.formats.architecture import FFN, ROUTER_WEIGHT, anchor_ffn, expert_ffn
from merge.formats.expert_file import ExpertFile, open_expert, write_expert
from merge.formats.expert_header import AnchorReference, Header, Losses, Training
from merge.planning.base_model import AnchorBase
from merge.planning.compatibility import check_belongs
from trainers.data import DataOptions, OwnText, moment_loader
from trainers.distributed import is_first, measuring_device
from trainers.expert.cost_plan import load_of, make_plan
from trainers.expert.meta_init import WeightsOnDisk, blank_model
from trainers.expert.module import LitExpert
from trainers.expert.paired import PairOptions, expert_state, pair
from trainers.loop.curves import draw_curves
from trainers.loop.module import LossOptions
from trainers.loop.optimizer import OptimizerOptions
from trainers.loop.run_folder import keep_result, kept_result, work_folder
from trainers.loop.trainer import Metrics, RunOptions, fit, resolve_precision
from trainers.owner import Domain, Owner, count_own, find_owner
from trainers.router.phatgoose import STANDARDISE, standardised_row
from trainers.router.row_init import (
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
    after: Metrics  # held-out, after training


def train_expert(
    *,
    domain: Domain,
    anchor_path: str,
    output: Path,
    corpora: Path,
    data: DataOptions,
    model: PairOptions,
    optimizer: OptimizerOptions,
    loss: LossOptions,
    run: RunOptions,
    public_path: Path | None = None,
    logger: Any = None,
    seed: int = 0,
    resume: bool = True,
    overwrite: bool = False,
    say: Callable[[str], None] = print,
) -> Result | None:
    """Trains the expert of `domain` and writes it to `output`.

    Args:
        domain: whose text it is, and where.
        anchor_path: the anchor folder, or a hub id of one with `flexo/` in it.
        output: the expert file to make.
        corpora: where sample corpora are, for domains without files of their own.
        data, model, optimizer, loss, run: options.
        public_path: a folder with public `train` and `test`; None takes the reference text that came with the anchor.
        logger: of Lightning, or None.
        seed: of the order of windows and of random rows.
        resume: go on with an unfinished run of the same settings.
        overwrite: replace an expert file that stands at `output`.
        say: told in a line each what is read.

    Returns:
        What was made; None on every device of a run but the first.

    A file at `output` that this very run has made, before it was stopped or put back into a queue, is the result.

    Raises:
        InputError: text, anchor or settings are unusable, or another file is at `output`. Nothing was written then.
    """
    if output.is_dir():
        raise InputError(f"{output}: a folder stands where the expert file should go. Choose another output.")
    exists = output.exists() and not overwrite
    if exists and not (resume and kept_result(output)):
        raise InputError(f"{output}: {EXISTS}")
    owner = find_owner(domain, anchor_path, corpora, data, public_path, say)
    anchor, text = owner.anchor, owner.text
    model.check_layers(anchor.architecture.num_hidden_layers)
    first_layer = model.first_trained_layer(anchor.first_layer)
    L.seed_everything(seed, verbose=False)
    if model.standardise:
        public_moments(anchor, 0, STANDARDISE)  # refused before anything is trained
    begun = None if model.start is None else _begun(model.start, owner)
    digests = owner.text_digests()
    if begun is not None:
        digests["start"] = text_digest(begun.path)
    if model.embedding is not None:
        read_embedding(Path(model.embedding))  # refused before anything is made
        digests["embedding"] = text_digest(Path(model.embedding))
    settings = {
        "domain": domain.name, "anchor": anchor.digest, "router": anchor.router_digest, "data": data.settings(),
        "model": asdict(model) | {"start": None}, "optimizer": asdict(optimizer), "loss": asdict(loss),
        "precision": run.precision, "seed": seed, "text": digests,
    }  # fmt: skip
    if exists:
        header = open_expert(output).header
        if kept_result(output) != result_of(settings, header):
            raise InputError(f"{output}: {EXISTS}")
        say(f"{output} was made before by this very run; nothing to do")
        return Result(output, header, text, str(owner.reference or "none"), None, {}) if is_first() else None
    with work_folder(output, settings, resume) as work:
        module = owner.module(data, run, seed, say)
        paired = _paired_model(anchor, text, data, model, first_layer, run, seed, begun)
        run.prepare(paired)
        fill = WeightsOnDisk(paired, anchor.checkpoint, begun).fill if run.strategy == "fsdp" else None
        lit = LitExpert(paired, optimizer, loss, data.steps, module.held_out_names, fill)
        load = load_of(data, run, optimizer, model, first_layer)
        flops = make_plan(anchor.architecture, load).flops_per_token
        before, after = fit(lit, module, run, work, logger, f"training {domain.name}", data.tokens_per_step, flops)
        state = expert_state(lit.model, anchor.checkpoint.dtype(anchor_ffn(0, FFN[0])))
        if not is_first():
            return None
        state |= {
            expert_ffn(n, part): anchor.checkpoint.tensor(anchor_ffn(n, part))
            for n in range(first_layer)
            for part in FFN
        }
        if begun is not None and not model.train_expert:
            state |= {name: begun.tensor(name) for name in state if not ROUTER.fullmatch(name)}
        if model.standardise:
            rows = {ROUTER_WEIGHT.format(n=n): n for n in range(first_layer, anchor.architecture.num_hidden_layers)}
            state |= {name: standardised_row(anchor, n, state[name]).to(state[name].dtype) for name, n in rows.items()}
        header = Header(
            domain=domain.name,
            title=domain.title or domain.name,
            licence=domain.licence,
            contact=domain.contact,
            anchor=_reference(anchor, anchor_path),
            training=_training(data, model, optimizer, run, seed, before, after, begun),
            data=count_own(module),
            privacy=None,
            software={name: importlib.metadata.version(name) for name in SOFTWARE},
        )
        header = write_expert(
            output, header, state, replace=overwrite, before=lambda whole: keep_result(work, result_of(settings, whole))
        )
        curves = draw_curves(work, f"expert {domain.name}")
        (work / "last.ckpt").unlink(missing_ok=True)
    return Result(output, header, text, str(owner.reference or "none"), curves, after)


def result_of(settings: dict[str, Any], header: Header) -> dict[str, Any]:
    """What identifies the file that a run with these settings makes."""
    result = {"settings": settings, "tensors": {name: tensor.sha256 for name, tensor in header.tensors.items()}}
    as_kept: dict[str, Any] = json.loads(json.dumps(result))
    return as_kept


def _paired_model(
    anchor: Anchor,
    text: OwnText,
    data: DataOptions,
    options: PairOptions,
    first_layer: int,
    run: RunOptions,
    seed: int,
    begun: ExpertFile | None,
) -> PreTrainedModel:
    """The anchor with a pair in every layer, the router rows started from the owner's text.

    What is frozen is held in the dtype of computation, once; the expert starts from the anchor's own bits, in float32.
    A model that will be spread over devices comes without values (`trainers.expert.meta_init`).
    """
    dtype = torch.bfloat16 if resolve_precision(run.precision).startswith("bf16") else torch.float32
    spread = run.strategy == "fsdp"
    model: Any = None
    if not spread or options.embedding is None:
        model = AutoModelForCausalLM.from_pretrained(anchor.folder, dtype=dtype)
    rows = _rows(anchor, text, data, options, run, seed, begun, model)
    if spread:
        model = blank_model(anchor.folder, dtype)  # the measured one goes: its values are on disk
    public_rows = [anchor.public_row(n) for n in range(len(rows))]
    start: Callable[[int, str], torch.Tensor] | None = None
    if not spread and begun is not None:
        start = lambda n, part: begun.tensor(expert_ffn(n, part))  # noqa: E731
    elif not spread and dtype != torch.float32:
        start = lambda n, part: anchor.checkpoint.tensor(anchor_ffn(n, part))  # noqa: E731
    return pair(
        model, public_rows, rows, train_expert=options.train_expert, train_row=options.train_router,
        bias=options.router_bias, rank=options.rank, first_layer=first_layer, start=start,
    )  # fmt: skip


def _rows(
    anchor: Anchor,
    text: OwnText,
    data: DataOptions,
    options: PairOptions,
    run: RunOptions,
    seed: int,
    begun: ExpertFile | None,
    model: PreTrainedModel,
) -> list[torch.Tensor]:
    """What the owner's router rows start from, [D] per layer."""
    init, basis = options.router_init, RowBasis(anchor, options.router_scale, options.router_shrinkage, seed, (), begun)
    if not ROW_INITS[init].reads_text:
        return starting_rows(init, basis)
    if options.embedding is not None:
        return embedded_rows(Path(options.embedding), init, basis)
    loader = moment_loader(text, anchor.folder, data)
    with progress("measuring own text", len(loader) * data.tokens_per_step, "tokens") as advance:
        moments = router_input_moments(model, loader, advance, measuring_device(run.accelerator))
    return starting_rows(init, replace(basis, own=moments))


def _begun(path: Path, owner: Owner) -> ExpertFile:
    """The expert file to go on from; raises `InputError` unless it is of this domain and anchor."""
    begun = open_expert(path)
    if begun.domain != owner.domain.name:
        raise InputError(f"{path}: the expert of {begun.domain}, and this run is of {owner.domain.name}.")
    check_belongs(begun, AnchorBase(owner.anchor, owner.anchor.folder.name, owner.anchor.digest))
    return begun


def _reference(anchor: Anchor, name: str) -> AnchorReference:
    """What the file says of its anchor: a hub id, or the folder's name alone, for paths are private."""
    return AnchorReference(
        name=Path(name).resolve().name if Path(name).is_dir() else name,
        digest=anchor.digest,
        tokenizer_digest=anchor.tokenizer_digest,
        router_digest=anchor.router_digest,
        architecture=anchor.architecture,
    )


def _training(
    data: DataOptions,
    model: PairOptions,
    optimizer: OptimizerOptions,
    run: RunOptions,
    seed: int,
    before: Metrics,
    after: Metrics,
    begun: ExpertFile | None,
) -> Training:
    """What the header says of training; with an expert to go on from, of both times together where that adds up."""
    earlier = None if begun is None else begun.header.training
    return Training(
        tokens=data.steps * data.tokens_per_step + (earlier.tokens if earlier else 0),
        steps=data.steps + (earlier.steps if earlier else 0),
        seed=seed,
        precision=resolve_precision(run.precision),
        learning_rate=optimizer.lr,
        weight_decay=optimizer.weight_decay,
        router_init="phatgoose" if model.standardise else model.router_init,
        public_share=data.public_share,
        losses=Losses(
            own_before=earlier.losses.own_before if earlier else before.get("own/loss"),
            own_after=after.get("own/loss"),
            public_before=earlier.losses.public_before if earlier else before.get("public/loss"),
            public_after=after.get("public/loss"),
        ),
        router_mass=None if model.standardise else after.get("own/router_mass"),  # the row that ships is another
    )
