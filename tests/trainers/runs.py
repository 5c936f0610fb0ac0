"""Small corpora and the arguments of small runs."""

from __future__ import annotations

import gzip
import json
import random
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

from trainers.anchor.train import AnchorOptions, train_anchor
from trainers.data import DataOptions
from trainers.expert.paired import PairOptions
from trainers.loop.module import LossOptions
from trainers.loop.optimizer import OptimizerOptions
from trainers.loop.run import Run
from trainers.loop.trainer import TrainerOptions
from trainers.owner import Domain, OwnerOptions

SENTENCES = {
    "public": "the city lies on a river and people live there since many years with their children and dogs",
    "math": "let x be one two three plus minus equals sum of product then so we get 1 2 3 4 5 6 7 8 9",
    "news": "today the government said that it will raise taxes and people went to vote in great numbers",
    "code": "def return self if else for in range ( ) [ ] = == import None True False yield lambda : .",
}
TRAINER = TrainerOptions(precision="32-true", accelerator="cpu", log_every=1)


def shard(path: Path, domain: str, documents: int) -> Path:
    """A corpus file of random sentences from a domain's words, always the same."""
    dice = random.Random(f"{domain} {path.name}")
    path.parent.mkdir(parents=True, exist_ok=True)
    with gzip.open(path, "wt", encoding="utf-8") as file:
        for _ in range(documents):
            words = dice.choices(SENTENCES[domain].split(), k=dice.randint(5, 40))
            file.write(json.dumps({"text": " ".join(words)}) + "\n")
    return path


def data_options(cache: Path, **changes: Any) -> DataOptions:
    values = {"tokens": 32 * 4 * 12, "length": 32, "batch_size": 4, "eval_windows": 8, "moment_windows": 32}
    return DataOptions(**(values | {"cache": cache} | changes))


def train_small_anchor(text: Path, output: Path, anchor: AnchorOptions | None = None, **changes: Any) -> None:
    """Makes an anchor of 2 layers in `output`; `changes` are fields of its run."""
    small = AnchorOptions(
        vocab_size=320, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=64, reference_bytes=20_000,
    )  # fmt: skip
    optimizer = OptimizerOptions(lr=1e-2, weight_decay=0.1)
    run = Run(output, data_options(output.parent / "tokens"), optimizer, LossOptions(), TRAINER)
    train_anchor(anchor or small, text, replace(run, **changes))


def expert_arguments(name: str, anchor_path: Path, shards: Path, folder: Path, /, **changes: Any) -> dict[str, Any]:
    """The arguments of `train_expert`; `changes` replace them, or fields of the owner's options or of the run."""
    text = {split: shards / name / f"{split}.jsonl.gz" for split in ("train", "test")}
    optimizer, loss = OptimizerOptions(lr=5e-3, weight_decay=0.1), LossOptions(own_vs_public=0.1)
    data = data_options(folder / "tokens", public_share=0.25)
    arguments: dict[str, Any] = {
        "owner": OwnerOptions(Domain(name, **text), str(anchor_path), shards),
        "model": PairOptions(),
        "run": Run(folder / f"{name}.pt", data, optimizer, loss, TRAINER, say=lambda _line: None),
    }
    for part in ("owner", "run"):
        inside = changes.keys() & {field.name for field in fields(arguments[part])}
        arguments[part] = replace(arguments[part], **{name: changes.pop(name) for name in inside})
    return arguments | changes
