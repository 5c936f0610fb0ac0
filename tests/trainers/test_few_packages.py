"""With tokens for text, training, merging and generating need neither readers of text nor Hydra."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from flexmix.tokens.shard import prepare_shard

ROOT = Path(__file__).parents[2]
ABSENT = ("datasets", "pyarrow", "datatrove", "hydra", "omegaconf", "antlr4", "submitit", "wandb")
WITHOUT_THEM = f"""
import sys
from importlib.abc import MetaPathFinder
from pathlib import Path


class Absent(MetaPathFinder):
    def find_spec(self, name, path, target=None):
        if name.partition(".")[0] in {ABSENT}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)


sys.meta_path.insert(0, Absent())
anchor, texts, folder = map(Path, sys.argv[1:])

from flexo import Sampling, generate, merge
from tests.trainers.runs import data_options, expert_arguments
from trainers.expert.train import train_expert

for name in ("math", "code"):
    data = data_options(folder / "tokens", tokens=1, public_share=0.25)
    arguments = expert_arguments(name, anchor, texts, folder, data=data, public=texts / "public")
    domain = arguments["owner"].domain
    object.__setattr__(domain, "train", texts / name / "train")
    object.__setattr__(domain, "test", texts / name / "test")
    assert train_expert(**arguments) is not None
merge([folder / "math.pt", folder / "code.pt"], folder / "model", anchor=anchor)
made = generate(folder / "model", "let x be", experts=["public", "math"], sampling=Sampling(4))
assert set(made.answer.shares) == {{"public", "math", "code"}}
assert not (found := {{*sys.modules}} & {{*{ABSENT}}}), found
"""


@pytest.mark.slow  # a process of its own, which loads PyTorch and Lightning
def test_an_expert_is_trained_merged_and_used_without_readers_of_text(
    small_anchor: Path, shards: Path, tmp_path: Path
) -> None:
    for text in shards.glob("*/*.jsonl.gz"):
        split = tmp_path / "text" / text.parent.name / text.name.partition(".")[0]
        shutil.copytree(prepare_shard(text, small_anchor, tmp_path / "cache").folder, split)
    command = [sys.executable, "-c", WITHOUT_THEM, small_anchor, tmp_path / "text", tmp_path]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
