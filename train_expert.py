"""Trains one expert on private text against a frozen public anchor, and writes it as an expert file.

    python train_expert.py +domain=math
    python train_expert.py +domain=local domain.name=pubmed domain.train=shard.jsonl.gz domain.test=held.jsonl.gz \
        anchor.path=anchor/ output=experts/pubmed.pt
    python train_expert.py +domain=math debug=fast output=/tmp/math.pt      (seconds)
    python train_expert.py +domain=math plan=true                           (what it needs: memory, hours, cost)
    python train_expert.py +domain=math privacy=dp                          (with differential privacy, docs/privacy.md)
    python train_expert.py +domain=math model=dense                         (a baseline: all weights, docs/baselines.md)
"""

from __future__ import annotations

from pathlib import Path

from omegaconf import DictConfig

from flexo.errors import InputError
from trainers.entry.hydra_entry import read, read_run, run_hydra


def main(cfg: DictConfig) -> None:
    if "domain" not in cfg:
        raise InputError("no domain: whose text is it? Give +domain=NAME, or +domain=local for your own. See --help.")
    from trainers.entry.summary import expert_summary, whole_summary
    from trainers.expert.cost_plan import HardwareOptions, cost_of
    from trainers.expert.paired import PairOptions
    from trainers.expert.train import train_expert
    from trainers.full_finetune import WholeOptions, train_whole
    from trainers.owner import Domain, OwnerOptions

    run = read_run(cfg, apart=("public",))
    owner = OwnerOptions(
        domain=read(cfg, "domain", Domain, apart=("flexmix",)),  # of the set in the paper, for flexo-data list
        anchor=read(cfg, "anchor.path", str),
        corpora=read(cfg, "corpora", Path),
        public=Path(read(cfg, "data.public", str)) if cfg.data.public else None,
    )
    plan = read(cfg, "plan", bool)
    private = "privacy" in cfg
    if cfg.model.kind != "paired":
        if private:
            raise InputError("privacy=dp: only experts are trained with it. Choose model=paired, or leave privacy out.")
        if plan:
            raise InputError("plan=true: cost plans are of experts alone. Leave plan=true out, or choose model=paired.")
        whole = train_whole(owner, read(cfg, "model", WholeOptions), run)
        if whole is not None:
            whole_summary(whole)
        return
    model = read(cfg, "model", PairOptions, apart=("kind",))
    kind = None
    if private:
        from trainers.privacy.guarantee import PrivacyOptions
        from trainers.privacy.training import planned, private_training

        options = read(cfg, "privacy", PrivacyOptions)
        kind = private_training(options)
    if plan:
        print(cost_of(owner.anchor, model, run, read(cfg, "hardware", HardwareOptions)))
        if private:
            print("\n".join(planned(owner, model, run, options)))
        return
    result = train_expert(owner, model, run, read(cfg, "overwrite", bool), kind)
    if result is not None:
        expert_summary(result)


if __name__ == "__main__":
    run_hydra(main, "train_expert")
