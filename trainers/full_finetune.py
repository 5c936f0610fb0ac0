"""Training all weights: a dense specialist, or the unrestricted mixture of experts on everyone's text pooled.

Both are baselines. A dense specialist is the anchor trained on one owner's text. The unrestricted mixture is an upper
bound: copies of the anchor's network as experts, all weights trained on the text of all owners together. On purpose it
breaks the rule that text stays with its owner.

    python train_expert.py +domain=math model=dense
    python train_expert.py +domain=local domain.name=pooled domain.train=null model=mixture 'model.match=[a.pt,b.pt]' \
        'data.mixture=[{path: data/corpora/math}, {path: data/corpora/code}]' output=unrestricted
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
from transformers import AutoModelForCausalLM, PreTrainedModel

from flexo.atomic_files import new_folder
from flexo.console import progress
from flexo.errors import InputError
from merge.baselines.btx import MixtureOptions, write_mixture
from merge.baselines.soup import average
from merge.formats.anchor_folder import Anchor
from merge.formats.architecture import FFN, Shapes, anchor_ffn, anchor_tensors, merged_tensors
from merge.formats.expert_file import open_expert
from merge.formats.manifest import MANIFEST, made_at, new_record, read_manifest
from merge.formats.merged_folder import finish
from merge.formats.model_folder import DENSE, name_of
from merge.planning.merge_options import DEFAULT_TOP_K
from merge.tensor_io.json_file import read_json
from merge.tensor_io.shard_writer import MAX_SHARD_SIZE, write_tensors
from merge.tensor_io.torch_tensors import computed_tensor
from trainers.data import DataOptions
from trainers.distributed import is_first
from trainers.expert.cost_plan import Load, plan_cost, whole_flops_per_token
from trainers.loop.curves import draw_curves
from trainers.loop.module import LitAnchor
from trainers.loop.run import Run
from trainers.loop.trainer import Metrics
from trainers.owner import OwnerOptions, count_own, find_owner
from trainers.router.module import LitRouted

EXPERT = re.compile(r"(model\.layers\.\d+\.mlp\.experts\.)(\d+)\.(gate_proj|up_proj|down_proj)\.weight")


@dataclass(frozen=True)
class WholeOptions:
    """A dense model, or a mixture of experts; which it is, and for how long it is trained."""

    kind: Literal["dense", "mixture"]
    experts: int | None = None  # of a mixture, public included; None: as many as `match` has, and one
    top_k: int | None = None  # None: all, at most 4, as a merge has it
    balance: float = 0.0  # weight of a load-balancing loss; the published models have none
    match: tuple[Path, ...] = ()  # expert files whose training FLOPs decide about data.tokens
    flops: float = 1.0  # as many times those FLOPs

    def __post_init__(self) -> None:
        if self.kind == "mixture" and self.size < 2:
            raise InputError("model=mixture: how many experts? Give model.experts=4, or model.match=[experts/math.pt].")
        if self.flops <= 0:
            raise InputError(f"model.flops={self.flops}: expected a positive number.")

    @property
    def size(self) -> int:
        """Experts of a mixture, public included."""
        return self.experts or len(self.match) + 1

    @property
    def active(self) -> int:
        return 1 if self.kind == "dense" else min(self.size, DEFAULT_TOP_K) if self.top_k is None else self.top_k


@dataclass(frozen=True)
class WholeResult:
    """What a run made."""

    path: Path
    training: dict[str, Any]
    curves: Path | None


def train_whole(owner: OwnerOptions, model: WholeOptions, run: Run) -> WholeResult | None:
    """Trains all weights from an anchor's on and writes a plain OLMo-2 or FlexOlmo folder to `run.output`.

    Args:
        owner: whose text it is, and from which anchor training starts.
        model: what is trained.
        run: everything else; its `data.tokens` gives way to `model.match`.

    Returns:
        What was made; None on every device of a run but the first.

    Raises:
        InputError: text, anchor or settings are unusable, or the output is not free. Nothing was written then.
    """
    run.check_whole("a whole model")
    if run.loss.stay or run.loss.own_domain:
        raise InputError(
            "loss.stay and loss.own_domain are settings of train_router.py. Training all weights takes neither: set 0."
        )
    found = find_owner(owner, run)
    anchor = found.anchor
    if model.match:
        run = replace(run, data=replace(run.data, tokens=matching_tokens(anchor, model, run.data)))
        cost = f"{model.flops:g} times the FLOPs of training {len(model.match)} experts"
        run.tell(f"{run.data.tokens:,} tokens cost {cost}")
    settings = {"domain": found.domain.name, "anchor": anchor.digest}
    settings |= {"model": asdict(model) | {"match": len(model.match)}} | run.settings | {"text": found.text_digests()}
    with run.work_folder(settings) as work:
        texts = found.texts(run)
        start = anchor.folder if model.kind == "dense" else _upcycled(anchor, model, work / "start", run.seed)
        lit = _lit(start, model, run, texts.held_out_names)
        flops = whole_flops_per_token(anchor.architecture, run.data.length, model.active)
        before, after = run.fit(lit, texts, work, f"training {found.domain.name}", flops)
        if not is_first():
            return None
        training = _training(run, flops, before, after)
        about: dict[str, Any] = {"data": asdict(count_own(texts)), "training": training}
        if model.kind == "dense":
            trained_from = {"name": name_of(anchor.folder), "digest": anchor.digest}
            about = {"domain": found.domain.name, "anchor": trained_from} | about
        write_whole(lit.model, anchor, start, run.output, about)
        curves = draw_curves(work, run.output.name)
        if start != anchor.folder:
            shutil.rmtree(start)
    return WholeResult(run.output, training, curves)


def _lit(start: Path, model: WholeOptions, run: Run, held_out_names: Sequence[str]) -> LitAnchor:
    """What is trained: the model of the folder `start`, in float32."""
    whole = AutoModelForCausalLM.from_pretrained(start, dtype=torch.float32)
    run.trainer.prepare(whole)
    if model.kind == "dense":
        return LitAnchor(whole, run.optimizer, run.loss, run.data.steps, held_out_names)
    weights = replace(run.loss, balance=model.balance)
    return LitRouted(whole, run.optimizer, weights, run.data.steps, held_out_names, [])


def _training(run: Run, flops: float, before: Metrics, after: Metrics) -> dict[str, Any]:
    """What the folder says of training; `flops` are those of a token."""
    return run.extent | {
        "precision": run.precision,
        "learning_rate": run.optimizer.peak,
        "weight_decay": run.optimizer.weight_decay,
        "public_share": run.data.public_share,
        "flops": flops * run.data.steps * run.data.tokens_per_step,
        "losses": {
            f"{name}_{when}": metrics.get(f"{name}/loss")
            for name in ("own", "public")
            for when, metrics in (("before", before), ("after", after))
        },
    }


def matching_tokens(anchor: Anchor, model: WholeOptions, data: DataOptions) -> int:
    """How many tokens of training cost `model.flops` times what training the experts of `model.match` cost.

    Counted are the products of forward and backward, nothing for frozen weights, experts at full rank, and attention as
    if the experts' windows had `data.length` tokens, too. The anchor's own training counts on neither side.
    """
    load = Load(tokens=0, length=data.length, rows=1, first_layer=anchor.first_layer)
    pair = plan_cost(anchor.architecture, load).flops_per_token
    spent = 0.0
    for path in model.match:
        header = open_expert(path).header
        if header.anchor.digest != anchor.digest:
            raise InputError(f"{path}: trained against another anchor than {anchor.folder}. Match experts of this one.")
        spent += header.training.tokens * pair
    return round(model.flops * spent / whole_flops_per_token(anchor.architecture, data.length, model.active))


def write_whole(model: PreTrainedModel, anchor: Anchor, start: Path, output: Path, about: dict[str, Any]) -> None:
    """Writes a trained model in the anchor's dtypes, under the names on disk of the folder `start` that it began as."""
    arch, mixed = anchor.architecture, (start / MANIFEST).exists()
    shapes: Shapes = merged_tensors(arch, model.config.num_experts) if mixed else anchor_tensors(arch)
    state = model.state_dict()
    tensors = []
    for name, shape in shapes.items():
        known = name if name in anchor.weights.names else anchor_ffn(0, FFN[0])
        tensors.append(computed_tensor(name, shape, anchor.weights.dtype(known), partial(_tensor, state, name)))
    with new_folder(output) as folder, progress("writing", sum(tensor.nbytes for tensor in tensors)) as advance:
        write_tensors(folder, tensors, MAX_SHARD_SIZE, advance)
        if mixed:
            record = read_manifest(start) | {"how": "all weights trained on pooled text", "made": made_at()} | about
        else:
            record = new_record(DENSE, "an anchor trained on, all weights", **about)
        finish(folder, output, read_json(start / "config.json"), start, record)


def _upcycled(anchor: Anchor, model: WholeOptions, folder: Path, seed: int) -> Path:
    """Copies of the anchor's networks under random rows, made once per run: the same function as the anchor's."""
    if not folder.is_dir() and is_first():
        names = [f"expert-{e}" for e in range(1, model.size)]
        copies = average([anchor.folder] * len(names))
        write_mixture(anchor, copies, names, folder, MixtureOptions(top_k=model.active, seed=seed))
    return folder


def _tensor(state: dict[str, torch.Tensor], name: str) -> torch.Tensor:
    """A tensor by its name on disk, from a model that holds its experts' weights in one piece."""
    if (found := EXPERT.fullmatch(name)) is None:
        return state[name]
    whole, e, part = found.groups()
    if part == "down_proj":
        return state[whole + "down_proj"][int(e)]
    gate, up = state[whole + "gate_up_proj"][int(e)].chunk(2)
    return gate if part == "gate_proj" else up
