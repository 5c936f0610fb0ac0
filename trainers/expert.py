"""Training one owner's expert against a frozen anchor, and writing it as an expert file.

The owner's text is read here and nowhere else; what leaves is one file, and `train_expert` returns what it contains.
"""

from __future__ import annotations

import importlib.metadata
import json
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import lightning as L  # noqa: N812 - the name everyone uses
import torch
from transformers import AutoModelForCausalLM, PreTrainedModel

from flexmix.corpus import HubSource, find_split
from flexmix.datamodule import TextModule
from flexmix.embedding import read_embedding
from flexmix.hub import local_folder
from flexmix.tokens import text_digest
from merge.anchor import Anchor, open_anchor
from merge.console import progress
from merge.errors import InputError
from merge.expert_file import open_expert, write_expert
from merge.flexolmo import FFN, anchor_ffn
from merge.header import AnchorReference, Data, Header, Losses, Training, check_domain
from trainers.curves import draw_curves
from trainers.devices import is_first, measuring_device
from trainers.fit import Metrics, RunOptions, fit, keep_result, kept_result, resolve_precision, work_folder
from trainers.lazy import WeightsOnDisk, blank_model
from trainers.lit import LitExpert, LossOptions
from trainers.optim import OptimizerOptions
from trainers.paired import PairOptions, expert_state, pair
from trainers.plan import load_of, make_plan
from trainers.routing import embedded_rows, router_input_moments, starting_rows
from trainers.text import DataOptions, OwnText, find_own_text

EXISTS = "this expert exists already. Choose another output, or pass overwrite=true."
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

    A file at `output` that this very run has made, before it was stopped or put back into a queue, is the result.

    Raises:
        InputError: text, anchor or settings are unusable, or another file is at `output`. Nothing was written then.
    """
    if not is_first():
        say = _hush
    check_domain(domain.name, "domain.name")
    if output.is_dir():
        raise InputError(f"{output}: a folder stands where the expert file should go. Choose another output.")
    exists = output.exists() and not overwrite
    if exists and not (resume and kept_result(output)):
        raise InputError(f"{output}: {EXISTS}")
    anchor = open_anchor(local_folder(anchor_path))
    text = find_own_text(domain.name, corpora, domain.train, domain.test, domain.hub, data.mixture)
    say(f"reading {text.said}")
    reference = public_path or anchor.reference
    public = {split: find_split(reference, split) for split in ("train", "test")} if reference.is_dir() else {}
    say(f"public text: {reference}" if public else "public text: none")
    if not public and data.public_share:
        raise InputError(
            f"{anchor.folder}: no public reference text came with this anchor, and data.public_share is "
            f"{data.public_share}. Give public text with data.public=FOLDER, or set data.public_share=0."
        )
    L.seed_everything(seed, verbose=False)
    files = {"train": text.train[0].path, "test": text.test}
    files |= {f"public_{split}": path for split, path in public.items()}
    if model.embedding is not None:
        read_embedding(Path(model.embedding))  # refused before anything is made
        files["embedding"] = Path(model.embedding)
    files |= {f"train_{n}": source.path for n, source in enumerate(text.train[1:], 2)}
    settings = {
        "domain": domain.name, "anchor": anchor.digest, "router": anchor.router_digest, "data": data.settings(),
        "model": asdict(model), "optimizer": asdict(optimizer), "loss": asdict(loss), "precision": run.precision,
        "seed": seed, "text": {name: text_digest(path) for name, path in files.items() if path},
    }  # fmt: skip
    if exists:
        header = open_expert(output).header
        if kept_result(output) != result_of(settings, header):
            raise InputError(f"{output}: {EXISTS}")
        say(f"{output} was made before by this very run; nothing to do")
        return Result(output, header, text, str(reference) if public else "none", None) if is_first() else None
    with work_folder(output, settings, resume) as work:
        own = data.sources(text, anchor.folder)
        public_windows = data.training_windows(public["train"], anchor.folder) if public and data.public_share else None
        held_out = {"own": text.test, "public": public.get("test")}
        module = TextModule(
            own,
            {name: data.windows(path, anchor.folder) for name, path in held_out.items() if path},
            batch_size=data.batch_size,
            steps=data.steps,
            seed=seed,
            public=public_windows,
            public_share=data.public_share,
            temperature=data.temperature,
            eval_windows=data.eval_windows,
            parts=run.accumulate,
        )
        if len(own) > 1:
            say(_mixture(text, module, data))
        paired = _paired_model(anchor, text, data, model, run, seed)
        run.prepare(paired)
        fill = WeightsOnDisk(paired, anchor.checkpoint).fill if run.strategy == "fsdp" else None
        lit = LitExpert(paired, optimizer, loss, data.steps, module.held_out_names, fill)
        load = load_of(data, run, optimizer, model)
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
            data=Data(
                documents=sum(source.windows.shard.documents for source in own),
                tokens=sum(source.windows.shard.tokens for source in own),
            ),
            privacy=None,
            software={name: importlib.metadata.version(name) for name in SOFTWARE},
        )
        header = write_expert(
            output, header, state, replace=overwrite, before=lambda whole: keep_result(work, result_of(settings, whole))
        )
        curves = draw_curves(work, f"expert {domain.name}")
        (work / "last.ckpt").unlink(missing_ok=True)
    return Result(output, header, text, str(reference) if public else "none", curves)


def result_of(settings: dict[str, Any], header: Header) -> dict[str, Any]:
    """What identifies the file that a run with these settings makes."""
    result = {"settings": settings, "tensors": {name: tensor.sha256 for name, tensor in header.tensors.items()}}
    as_kept: dict[str, Any] = json.loads(json.dumps(result))
    return as_kept


def _hush(_line: str) -> None:
    pass


def _paired_model(
    anchor: Anchor, text: OwnText, data: DataOptions, options: PairOptions, run: RunOptions, seed: int
) -> PreTrainedModel:
    """The anchor with a pair in every layer, the router rows started from the owner's text.

    What is frozen is held in the dtype of computation, once; the expert starts from the anchor's own bits, in float32.
    A model that will be spread over devices comes without values (`trainers.lazy`).
    """
    dtype = torch.bfloat16 if resolve_precision(run.precision).startswith("bf16") else torch.float32
    spread = run.strategy == "fsdp"
    model: Any = None
    if not spread or options.embedding is None:
        model = AutoModelForCausalLM.from_pretrained(anchor.folder, dtype=dtype)
    start: dict[str, Any] = {"scale": options.router_scale, "shrinkage": options.router_shrinkage, "seed": seed}
    if options.embedding is not None:
        rows = embedded_rows(Path(options.embedding), options.router_init, anchor, **start)
    else:
        loader = data.measured(text, anchor.folder)
        with progress("measuring own text", len(loader) * data.tokens_per_step, "tokens") as advance:
            moments = router_input_moments(model, loader, advance, measuring_device(run.accelerator))
        rows = starting_rows(options.router_init, anchor, moments, **start)
    if spread:
        model = blank_model(anchor.folder, dtype)  # the measured one goes: its values are on disk
    public_rows = [anchor.public_row(n) for n in range(len(rows))]
    rounded = not spread and dtype != torch.float32
    return pair(
        model, public_rows, rows, train_row=options.train_router, bias=options.router_bias, rank=options.rank,
        start=(lambda n, part: anchor.checkpoint.tensor(anchor_ffn(n, part))) if rounded else None,
    )  # fmt: skip


def _mixture(text: OwnText, module: TextModule, data: DataOptions) -> str:
    """How much of each source a run reads."""
    rows = module.own.counts(round(data.steps * data.batch_size * (1 - data.public_share)))
    parts = zip(text.train, module.own.streams, rows, strict=True)
    return "own rows: " + ", ".join(
        f"{source.path} {count / sum(rows):.0%} ({count / len(stream.windows):.1f} epochs)"
        for source, stream, count in parts
    )


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
