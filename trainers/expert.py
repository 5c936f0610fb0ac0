"""Training one owner's expert against a frozen anchor, and writing it as an expert file.

The owner's text is read here and nowhere else; what leaves is one file, and `train_expert` returns what it contains.
"""

from __future__ import annotations

import importlib.metadata
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import lightning as L  # noqa: N812 - the name everyone uses
import torch
from transformers import AutoModelForCausalLM, PreTrainedModel

from flexmix.embedding import read_embedding
from flexmix.tokens import text_digest
from merge.anchor import Anchor
from merge.console import progress
from merge.errors import InputError
from merge.expert_file import write_expert
from merge.flexolmo import FFN, anchor_ffn
from merge.header import AnchorReference, Header, Losses, Training
from trainers.curves import draw_curves
from trainers.devices import is_first, measuring_device
from trainers.fit import Metrics, RunOptions, fit, resolve_precision, work_folder
from trainers.lit import LitExpert, LossOptions
from trainers.optim import OptimizerOptions
from trainers.owner import Domain, count_own, find_owner
from trainers.paired import expert_state, pair
from trainers.plan import load_of, make_plan
from trainers.routing import RouterInit, embedded_rows, router_input_moments, starting_rows
from trainers.text import DataOptions, OwnText

SOFTWARE = ("flexo", "torch", "transformers", "lightning")


@dataclass(frozen=True)
class PairOptions:
    """The router of the pair."""

    router_init: RouterInit = "discriminant"
    embedding: str | None = None  # a domain embedding file, instead of reading own text once more
    router_scale: float = 1.5  # on a discriminant
    router_shrinkage: float = 0.01  # of a discriminant's covariance
    train_router: bool = True
    router_bias: float | None = None  # what a trained bias starts from; None: no bias
    rank: int | None = None  # of the expert's difference from the public network; None: full

    def __post_init__(self) -> None:
        if self.rank is not None and self.rank < 1:
            raise InputError(f"model.rank={self.rank}: expected a positive number, or null for a full expert.")


@dataclass(frozen=True)
class Result:
    """What a training run made."""

    path: Path
    header: Header
    text: OwnText
    public: str  # which public text was used
    curves: Path | None  # a picture of the run


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

    Raises:
        InputError: text, anchor or settings are unusable, or `output` exists. Nothing was written then.
    """
    if output.is_dir():
        raise InputError(f"{output}: a folder stands where the expert file should go. Choose another output.")
    if output.exists() and not overwrite:
        raise InputError(f"{output}: this expert exists already. Choose another output, or pass overwrite=true.")
    owner = find_owner(domain, anchor_path, corpora, data, public_path, say)
    anchor, text = owner.anchor, owner.text
    L.seed_everything(seed, verbose=False)
    digests = owner.text_digests()
    if model.embedding is not None:
        read_embedding(Path(model.embedding))  # refused before anything is made
        digests["embedding"] = text_digest(Path(model.embedding))
    settings = {
        "domain": domain.name, "anchor": anchor.digest, "router": anchor.router_digest, "data": data.settings(),
        "model": asdict(model), "optimizer": asdict(optimizer), "loss": asdict(loss), "precision": run.precision,
        "seed": seed, "text": digests,
    }  # fmt: skip
    with work_folder(output, settings, resume) as work:
        module = owner.module(data, run, seed, say)
        paired = _paired_model(anchor, text, data, model, run, seed)
        run.prepare(paired)
        lit = LitExpert(paired, optimizer, loss, data.steps, module.held_out_names)
        load = load_of(data, run, optimizer, rank=model.rank, bias=model.router_bias is not None)
        flops = make_plan(anchor.architecture, load).flops_per_token
        before, after = fit(lit, module, run, work, logger, f"training {domain.name}", data.tokens_per_step, flops)
        state = expert_state(lit.model, anchor.checkpoint.dtype(anchor_ffn(0, FFN[0])))
        if not is_first():
            return None
        header = Header(
            domain=domain.name,
            title=domain.title or domain.name,
            licence=domain.licence,
            contact=domain.contact,
            anchor=_reference(anchor, anchor_path),
            training=_training(data, model, optimizer, run, seed, before, after),
            data=count_own(module),
            privacy=None,
            software={name: importlib.metadata.version(name) for name in SOFTWARE},
        )
        header = write_expert(output, header, state, replace=overwrite)
        (work / "last.ckpt").unlink(missing_ok=True)
        curves = draw_curves(work, f"expert {domain.name}")
    return Result(output, header, text, str(owner.reference or "none"), curves)


def _paired_model(
    anchor: Anchor, text: OwnText, data: DataOptions, options: PairOptions, run: RunOptions, seed: int
) -> PreTrainedModel:
    """The anchor with a pair in every layer, the router rows started from the owner's text.

    What is frozen is held in the dtype of computation, once; the expert starts from the anchor's own bits, in float32.
    """
    dtype = torch.bfloat16 if resolve_precision(run.precision).startswith("bf16") else torch.float32
    model = AutoModelForCausalLM.from_pretrained(anchor.folder, dtype=dtype)
    start: dict[str, Any] = {"scale": options.router_scale, "shrinkage": options.router_shrinkage, "seed": seed}
    if options.embedding is not None:
        rows = embedded_rows(Path(options.embedding), options.router_init, anchor, **start)
    else:
        loader = data.measured(text, anchor.folder)
        with progress("measuring own text", len(loader) * data.tokens_per_step, "tokens") as advance:
            moments = router_input_moments(model, loader, advance, measuring_device(run.accelerator))
        rows = starting_rows(options.router_init, anchor, moments, **start)
    public_rows = [anchor.public_row(n) for n in range(len(rows))]
    return pair(
        model, public_rows, rows, train_row=options.train_router, bias=options.router_bias, rank=options.rank,
        start=None if dtype == torch.float32 else lambda n, part: anchor.checkpoint.tensor(anchor_ffn(n, part)),
    )  # fmt: skip


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
) -> Training:
    return Training(
        tokens=data.steps * data.tokens_per_step,
        steps=data.steps,
        seed=seed,
        precision=resolve_precision(run.precision),
        learning_rate=optimizer.lr,
        weight_decay=optimizer.weight_decay,
        router_init=model.router_init,
        public_share=data.public_share,
        losses=Losses(
            own_before=before.get("own/loss"),
            own_after=after.get("own/loss"),
            public_before=before.get("public/loss"),
            public_after=after.get("public/loss"),
        ),
        router_mass=after.get("own/router_mass"),
    )
