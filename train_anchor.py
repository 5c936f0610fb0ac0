"""Makes the public anchor: a tokenizer and a small OLMo-2 from scratch, or an existing OLMo-2 taken as it is.

python train_anchor.py anchor=tiny data.path=data/corpora/public output=anchor
python train_anchor.py data.path=data/corpora/public output=/tmp/anchor debug=fast      (seconds)
"""

from __future__ import annotations

from pathlib import Path

from omegaconf import DictConfig

from trainers.entry.hydra_entry import read, read_run, run_hydra


def main(cfg: DictConfig) -> None:
    from trainers.anchor.train import AnchorOptions, train_anchor
    from trainers.distributed import is_first
    from trainers.entry.summary import anchor_summary

    run = read_run(cfg, apart=("path",))
    metrics = train_anchor(read(cfg, "anchor", AnchorOptions), read(cfg, "data.path", Path), run)
    if is_first():
        anchor_summary(run.output, metrics)


if __name__ == "__main__":
    run_hydra(main, "train_anchor")
