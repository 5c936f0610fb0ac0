"""Three experts on an anchor that is no toy: the defaults, the published recipe, dense specialists and BTM."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import yaml

from evals.matrix.evaluate import Scoring, evaluate
from evals.matrix.variants import Extras
from evals.scoring.held_out import Reading
from flexo.config_dir import config_dir
from merge.planning.merge_options import MergeOptions
from merge.planning.merging import merge_experts
from trainers.anchor.train import AnchorOptions, train_anchor
from trainers.data import DataOptions
from trainers.expert.paired import PairOptions
from trainers.expert.train import train_expert
from trainers.full_finetune import WholeOptions, train_whole
from trainers.loop.module import LossOptions
from trainers.loop.optimizer import OptimizerOptions
from trainers.loop.run import Run
from trainers.loop.trainer import TrainerOptions
from trainers.owner import Domain, OwnerOptions

Note = Callable[..., None]
MIDDLE = {"vocab_size": 16_384, "hidden_size": 512, "intermediate_size": 2048, "num_hidden_layers": 12}  # 64M
TOY = {"vocab_size": 320, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2}


def study(note: Note, corpora: Path, work: Path, tokens: tuple[int, int], toy: bool) -> None:
    """Bits per byte of each way on test text; `tokens` are those of the anchor and of each expert."""
    length, rows = (32, 4) if toy else (512, 32)

    def run(output: str, kind: str, count: int, **changes: Any) -> Run:
        data = {"tokens": count, "length": length, "batch_size": rows, "moment_windows": rows, "eval_windows": rows}
        options = {
            "data": DataOptions(**_given("data", kind) | data | {"cache": work / "tokens"} | changes.get("data", {})),
            "optimizer": OptimizerOptions(**_given("optimizer", kind) | changes.get("optimizer", {})),
            "loss": LossOptions(**_given("loss", kind) | changes.get("loss", {})),
        }
        return Run(work / output, **options, trainer=TrainerOptions(checkpoint_seconds=1e6), say=lambda _line: None)

    heads = {"num_attention_heads": 2 if toy else 8, "num_key_value_heads": 2 if toy else 8}
    anchor = AnchorOptions(
        **(TOY if toy else MIDDLE), **heads, context_heads=1 if toy else 2, reference_bytes=400_000,
        max_position_embeddings=length,
    )  # fmt: skip
    note(anchor=train_anchor(anchor, corpora / "public", run("anchor", "anchor", tokens[0])))
    published = {name: _given("experiment", "flexolmo_paper")[name] for name in ("data", "loss", "optimizer", "model")}
    specialist = {name: _given("model", "dense")[name] for name in ("data", "optimizer")}
    for given in (published, specialist):
        given["data"].pop("batch_size")
    domains = sorted(path.name for path in corpora.iterdir() if path.is_dir() and path.name != "public")[:3]
    made: dict[str, list[Path]] = {"ours": [], "published": [], "dense": []}
    for name in domains:
        text = {split: next((corpora / name).glob(f"{split}.jsonl*")) for split in ("train", "test")}
        owner = OwnerOptions(Domain(name, **text), str(work / "anchor"), corpora)
        for way, changes, pair in (("ours", {}, {}), ("published", published, published["model"])):
            ready = run(f"{way}/{name}.pt", "expert", tokens[1], **changes)
            train_expert(owner, PairOptions(**pair), ready)
            made[way].append(ready.output)
        ready = run(f"dense/{name}", "expert", tokens[1], **specialist)
        train_whole(owner, WholeOptions("dense"), replace(ready, loss=LossOptions()))
        made["dense"].append(ready.output)
        note(trained=name)
    merge_experts(made["ours"], work / "merged", anchor=work / "anchor")
    merge_experts(
        made["published"], work / "as-published", anchor=work / "anchor",
        options=MergeOptions(public_weight=1.0),
    )  # fmt: skip
    models = [work / "anchor", *made["dense"], work / "merged", work / "as-published"]
    results = evaluate(
        [str(model) for model in models], Reading(corpora, ["public", *domains], max_bytes=4_000 if toy else 100_000),
        extras=Extras(btm=2), scoring=Scoring(length=length),
    )  # fmt: skip
    for cell in results.cells:
        note(**{f"{cell.model}, {cell.domain}": cell.bits_per_byte})


def _given(group: str, name: str) -> dict[str, Any]:
    """The settings of a config file, without Hydra; `1e-3` is text to YAML."""

    def number(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: number(part) for key, part in value.items()}
        if isinstance(value, str):
            try:
                return float(value)
            except ValueError:
                return value
        return tuple(value) if isinstance(value, list) else value

    given: dict[str, Any] = number(yaml.safe_load((config_dir() / group / f"{name}.yaml").read_text()))
    return {key: value for key, value in given.items() if key not in ("path", "public")}
