"""Makes the public anchor: a tokenizer and a small OLMo-2 from scratch, or an existing OLMo-2 taken as it is.

python train_anchor.py anchor=tiny data.path=data/corpora/public output=anchor
python train_anchor.py data.path=data/corpora/public output=/tmp/anchor debug=fast      (seconds)
"""

from __future__ import annotations

from pathlib import Path

from omegaconf import DictConfig

from trainers.hydra_entry import read, run_hydra


def main(cfg: DictConfig) -> None:
    from hydra.utils import instantiate

    from trainers.anchor.train import AnchorOptions, train_anchor
    from trainers.data import DataOptions
    from trainers.distributed import is_first
    from trainers.loop.module import LossOptions
    from trainers.loop.optimizer import OptimizerOptions
    from trainers.loop.trainer import RunOptions
    from trainers.summary import anchor_summary

    output = read(cfg, "output", Path)
    metrics = train_anchor(
        anchor=read(cfg, "anchor", AnchorOptions),
        data_path=read(cfg, "data.path", Path),
        output=output,
        data=read(cfg, "data", DataOptions, apart=("path",)),
        optimizer=read(cfg, "optimizer", OptimizerOptions),
        loss=read(cfg, "loss", LossOptions),
        run=read(cfg, "run", RunOptions),
        logger=instantiate(cfg.logger),
        seed=read(cfg, "seed", int),
        resume=read(cfg, "resume", bool),
    )
    if is_first():
        anchor_summary(output, metrics)


if __name__ == "__main__":
    run_hydra(main, "train_anchor")
