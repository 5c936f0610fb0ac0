"""Trains one expert on private text against a frozen public anchor, and writes it as an expert file.

    python train_expert.py +domain=math
    python train_expert.py +domain=local domain.name=pubmed domain.train=shard.jsonl.gz domain.test=held.jsonl.gz \
        anchor.path=anchor/ output=experts/pubmed.pt
    python train_expert.py +domain=math debug=fast output=/tmp/math.pt      (seconds)
    python train_expert.py +domain=math plan=true                           (what it needs: memory, hours, cost)
    python train_expert.py +domain=math model=dense                         (a baseline: all weights, docs/baselines.md)
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from flexo.errors import InputError
from trainers.hydra_entry import read, run_hydra


def main(cfg: DictConfig) -> None:
    if "domain" not in cfg:
        raise InputError("no domain: whose text is it? Give +domain=NAME, or +domain=local for your own. See --help.")
    from hydra.utils import instantiate

    from trainers.data import DataOptions
    from trainers.expert.cost_plan import HardwareOptions, architecture_for, first_layer_for, load_of, render
    from trainers.expert.paired import PairOptions
    from trainers.expert.train import train_expert
    from trainers.full_finetune import WholeOptions, train_whole
    from trainers.loop.module import LossOptions
    from trainers.loop.optimizer import OptimizerOptions
    from trainers.loop.trainer import RunOptions
    from trainers.owner import Domain
    from trainers.summary import expert_summary, whole_summary

    anchor_path = read(cfg, "anchor.path", str)
    data, run = read(cfg, "data", DataOptions, apart=("public",)), read(cfg, "run", RunOptions)
    optimizer = read(cfg, "optimizer", OptimizerOptions)
    shared: dict[str, Any] = {
        "domain": read(
            cfg, "domain", Domain, apart=("flexmix",)
        ),  # flexmix: of the set in the paper, for flexo-data list
        "anchor_path": anchor_path,
        "output": read(cfg, "output", Path),
        "corpora": read(cfg, "corpora", Path),
        "data": data,
        "optimizer": optimizer,
        "loss": read(cfg, "loss", LossOptions),
        "run": run,
        "public_path": Path(read(cfg, "data.public", str)) if cfg.data.public else None,
        "logger": instantiate(cfg.logger),
        "seed": read(cfg, "seed", int),
        "resume": read(cfg, "resume", bool),
    }
    if cfg.model.kind != "paired":
        if read(cfg, "plan", bool):
            raise InputError("plan=true: plans are for experts, model=paired.")
        whole = train_whole(model=read(cfg, "model", WholeOptions), **shared)
        if whole is not None:
            whole_summary(whole)
        return
    model = read(cfg, "model", PairOptions, apart=("kind",))
    if read(cfg, "plan", bool):
        architecture = architecture_for(anchor_path)
        model.check_layers(architecture.num_hidden_layers)
        load = load_of(data, run, optimizer, model, model.first_trained_layer(first_layer_for(anchor_path)))
        print(render(anchor_path, architecture, load, read(cfg, "hardware", HardwareOptions)))
        return
    result = train_expert(model=model, overwrite=read(cfg, "overwrite", bool), **shared)
    if result is not None:
        expert_summary(result)


if __name__ == "__main__":
    run_hydra(main, "train_expert")
