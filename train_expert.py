"""Trains one expert on private text against a frozen public anchor, and writes it as an expert file.

    python train_expert.py +domain=math
    python train_expert.py +domain=local domain.name=pubmed domain.train=shard.jsonl.gz domain.test=held.jsonl.gz \
        anchor.path=anchor/ output=experts/pubmed.pt
    python train_expert.py +domain=math debug=fast output=/tmp/math.pt      (seconds)
"""

from __future__ import annotations

from pathlib import Path

from omegaconf import DictConfig, OmegaConf

from merge.errors import InputError
from trainers.entry import plain, run_hydra


def main(cfg: DictConfig) -> None:
    if "domain" not in cfg:
        raise InputError("no domain: whose text is it? Give +domain=NAME, or +domain=local for your own. See --help.")
    from hydra.utils import instantiate

    from flexmix.corpus import HubSource
    from trainers.expert import Domain, PairOptions, train_expert
    from trainers.fit import RunOptions
    from trainers.lit import LossOptions
    from trainers.optim import OptimizerOptions
    from trainers.summary import expert_summary
    from trainers.text import DataOptions, WeightedText

    if cfg.data.mixture and OmegaConf.is_missing(cfg.domain, "train"):
        cfg.domain.train = None  # the mixture names all training text
    domain, data = plain(cfg, "domain"), plain(cfg, "data")
    mixture = tuple(WeightedText(Path(source["path"]), source.get("weight")) for source in data.pop("mixture") or ())
    hub = domain.pop("hub")
    files = {split: Path(path) if (path := domain.pop(split)) else None for split in ("train", "test")}
    public = data.pop("public")
    result = train_expert(
        domain=Domain(**domain | files, hub=HubSource(**hub) if hub else None, mixture=mixture),
        anchor_path=cfg.anchor.path,
        output=Path(cfg.output),
        corpora=Path(cfg.corpora),
        data=DataOptions(**data | {"cache": Path(data["cache"])}),
        model=PairOptions(**plain(cfg, "model")),
        optimizer=OptimizerOptions(**plain(cfg, "optimizer")),
        loss=LossOptions(**plain(cfg, "loss")),
        run=RunOptions(**plain(cfg, "run")),
        public_path=Path(public) if public else None,
        logger=instantiate(cfg.logger),
        seed=cfg.seed,
        resume=cfg.resume,
        overwrite=cfg.overwrite,
    )
    expert_summary(result)


if __name__ == "__main__":
    run_hydra(main, "train_expert")
