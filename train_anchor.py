"""Makes the public anchor: a tokenizer and a small OLMo-2 from scratch, or an existing OLMo-2 taken as it is.

python train_anchor.py anchor=tiny data.path=data/corpora/public output=anchor
python train_anchor.py data.path=data/corpora/public output=/tmp/anchor debug=fast      (seconds)
"""

from __future__ import annotations

from pathlib import Path

from omegaconf import DictConfig

from trainers.entry import plain, run_hydra


def main(cfg: DictConfig) -> None:
    from hydra.utils import instantiate

    from trainers.anchor import AnchorOptions, train_anchor
    from trainers.fit import RunOptions
    from trainers.lit import LossOptions
    from trainers.optim import OptimizerOptions
    from trainers.summary import anchor_summary
    from trainers.text import DataOptions

    data = plain(cfg, "data")
    data_path, output = Path(data.pop("path")), Path(cfg.output)
    metrics = train_anchor(
        anchor=AnchorOptions(**plain(cfg, "anchor")),
        data_path=data_path,
        output=output,
        data=DataOptions(**data | {"cache": Path(data["cache"])}),
        optimizer=OptimizerOptions(**plain(cfg, "optimizer")),
        loss=LossOptions(**plain(cfg, "loss")),
        run=RunOptions(**plain(cfg, "run")),
        logger=instantiate(cfg.logger),
        seed=cfg.seed,
        resume=cfg.resume,
    )
    anchor_summary(output, metrics)


if __name__ == "__main__":
    run_hydra(main, "train_anchor")
