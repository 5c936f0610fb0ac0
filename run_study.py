"""Runs the study: every recipe and baseline on every domain and seed, measured, as one report (docs/study.md).

python run_study.py                                                      (small, on sample corpora)
python run_study.py study=full corpora=/data/corpora output=full jobs=8
python run_study.py study=full corpora=/data/corpora plan=true           (the commands, one a line)
"""

from __future__ import annotations

from omegaconf import DictConfig

from trainers.entry.hydra_entry import read, run_hydra


def main(cfg: DictConfig) -> None:
    from evals.study.recipe import Study
    from evals.study.study import StudyOptions, run_study

    run_study(read(cfg, "study", Study), read(cfg, "", StudyOptions, apart=("study",)))


if __name__ == "__main__":
    run_hydra(main, "run_study")
