"""Trains the router rows of a merged model on public text and proxies, and writes the model with them.

python train_router.py merged=model/ output=model-rt/ +proxies.math=proxies/math.jsonl.gz
python train_router.py merged=model/ output=model-rt/                              (on public text alone)
python train_router.py merged=model/ output=/tmp/model-rt debug=fast               (seconds)
"""

from __future__ import annotations

from pathlib import Path

from omegaconf import DictConfig

from trainers.entry.hydra_entry import read, read_run, run_hydra


def main(cfg: DictConfig) -> None:
    from trainers.entry.summary import router_summary
    from trainers.router.train import RouterOptions, train_router

    result = train_router(
        model_path=read(cfg, "merged", Path),
        public_path=read(cfg, "data.public", Path),
        proxies=read(cfg, "proxies", dict[str, Path]),
        router=read(cfg, "router", RouterOptions),
        run=read_run(cfg, apart=("public",)),
    )
    if result is not None:
        router_summary(result)


if __name__ == "__main__":
    run_hydra(main, "train_router")
