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

from flexmix.corpus import Corpus, HubSource, find_corpus, find_split
from flexmix.datamodule import TextModule
from flexmix.packing import EvalLoader, Windows
from flexmix.tokens import text_digest
from merge.anchor import Anchor, open_anchor
from merge.console import progress
from merge.errors import InputError
from merge.expert_file import write_expert
from merge.flexolmo import FFN, anchor_ffn
from merge.header import AnchorReference, Data, Header, Losses, Training, check_domain
from trainers.fit import Metrics, RunOptions, fit, resolve_precision, work_folder
from trainers.hub import local_folder
from trainers.lit import LitExpert, LossOptions
from trainers.optim import OptimizerOptions
from trainers.paired import expert_state, pair
from trainers.routing import RouterInit, router_input_moments, starting_rows
from trainers.text import DataOptions

SOFTWARE = ("flexo", "torch", "transformers", "lightning")


@dataclass(frozen=True)
class Domain:
    """An owner's domain: its name, what to call it, and where its text is."""

    name: str
    title: str = ""
    licence: str = "other"
    contact: str = ""
    train: Path | None = None
    test: Path | None = None
    hub: HubSource | None = None


@dataclass(frozen=True)
class PairOptions:
    """The router of the pair."""

    router_init: RouterInit = "discriminant"
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
    corpus: Corpus
    public: str  # which public text was used


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
) -> Result:
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

    Raises:
        InputError: text, anchor or settings are unusable, or `output` exists. Nothing was written then.
    """
    check_domain(domain.name, "domain.name")
    if output.is_dir():
        raise InputError(f"{output}: a folder stands where the expert file should go. Choose another output.")
    if output.exists() and not overwrite:
        raise InputError(f"{output}: this expert exists already. Choose another output, or pass overwrite=true.")
    anchor = open_anchor(local_folder(anchor_path))
    corpus = find_corpus(domain.name, corpora, domain.train, domain.test, domain.hub)
    say(f"reading {corpus.said}")
    reference = public_path or anchor.reference
    public = {split: find_split(reference, split) for split in ("train", "test")} if reference.is_dir() else {}
    say(f"public text: {reference}" if public else "public text: none")
    if not public and data.public_share:
        raise InputError(
            f"{anchor.folder}: no public reference text came with this anchor, and data.public_share is "
            f"{data.public_share}. Give public text with data.public=FOLDER, or set data.public_share=0."
        )
    L.seed_everything(seed, verbose=False)
    files = {"train": corpus.train, "test": corpus.test, **{f"public_{split}": path for split, path in public.items()}}
    settings = {
        "domain": domain.name, "anchor": anchor.digest, "router": anchor.router_digest, "data": data.settings(),
        "model": asdict(model), "optimizer": asdict(optimizer), "loss": asdict(loss), "precision": run.precision,
        "seed": seed, "text": {name: text_digest(path) for name, path in files.items() if path},
    }  # fmt: skip
    with work_folder(output, settings, resume) as work:
        own = data.windows(corpus.train, anchor.folder)
        public_windows = data.windows(public["train"], anchor.folder) if public and data.public_share else None
        held_out = {"own": corpus.test, "public": public.get("test")}
        module = TextModule(
            own,
            {name: data.windows(path, anchor.folder) for name, path in held_out.items() if path},
            batch_size=data.batch_size,
            steps=data.steps,
            seed=seed,
            public=public_windows,
            public_share=data.public_share,
            eval_windows=data.eval_windows,
        )
        lit = LitExpert(
            _paired_model(anchor, own, data, model, seed), optimizer, loss, data.steps, module.held_out_names
        )
        before, after = fit(lit, module, run, work, logger, f"training {domain.name}", data.tokens_per_step)
        dtype = anchor.checkpoint.dtype(anchor_ffn(0, FFN[0]))
        header = Header(
            domain=domain.name,
            title=domain.title or domain.name,
            licence=domain.licence,
            contact=domain.contact,
            anchor=_reference(anchor, anchor_path),
            training=_training(data, model, optimizer, run, seed, before, after),
            data=Data(documents=own.shard.documents, tokens=own.shard.tokens),
            privacy=None,
            software={name: importlib.metadata.version(name) for name in SOFTWARE},
        )
        header = write_expert(output, header, expert_state(lit.model, dtype), replace=overwrite)
        (work / "last.ckpt").unlink(missing_ok=True)
    return Result(output, header, corpus, str(reference) if public else "none")


def _paired_model(anchor: Anchor, own: Windows, data: DataOptions, options: PairOptions, seed: int) -> PreTrainedModel:
    """The anchor in fp32 with a pair in every layer, the router rows started from the owner's text."""
    model = AutoModelForCausalLM.from_pretrained(anchor.folder, dtype=torch.float32)
    loader = EvalLoader(own, data.batch_size, data.moment_windows)
    with progress("measuring own text", loader.count * data.length, "tokens") as advance:
        moments = router_input_moments(model, loader, advance)
    rows = starting_rows(
        options.router_init, anchor, moments, scale=options.router_scale, shrinkage=options.router_shrinkage, seed=seed
    )
    public_rows = [anchor.public_row(n) for n in range(len(rows))]
    return pair(model, public_rows, rows, train_row=options.train_router, bias=options.router_bias, rank=options.rank)


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
