"""docs/cluster.md, "From start to end", word for word: once undisturbed, once with a requeue in the middle."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import pytest

from tests.local_slurm import LOCAL_SLURM
from tests.trainers.runs import shard, train_small_anchor
from trainers.anchor.train import AnchorOptions

pytestmark = pytest.mark.slurm
ROOT = Path(__file__).resolve().parents[3]
DOMAINS = ("math", "news", "code")


def commands() -> str:
    """The commands of the section, as they stand there."""
    section = (ROOT / "docs/cluster.md").read_text().split("\n## From start to end\n")[1].split("\n## ")[0]
    (block,) = re.findall(r"^```sh\n(.*?)^```", section, re.MULTILINE | re.DOTALL)
    return block


class Reader:
    """Follows the page in a folder that has what comes before the section: corpora, and an anchor of the owners."""

    def __init__(self, folder: Path, corpora: Path, anchor: Path, cluster: dict[str, str]) -> None:
        self.folder = folder
        (folder / "data").mkdir(parents=True)
        for name, what in {
            "data/corpora": corpora, "anchor": anchor, "launch": ROOT / "launch",
            "train_expert.py": ROOT / "train_expert.py",
        }.items():  # fmt: skip
            (folder / name).symlink_to(what)
        self.slurm = tempfile.mkdtemp(prefix="slurm-", dir="/tmp")  # its own, for the last command ends it
        self.environment = {name: value for name, value in cluster.items() if name != "SLURM_CONF"}
        self.environment |= {"FLEXO_SLURM": self.slurm, "FLEXO_SLURM_CPUS": "3"}
        self.environment["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{cluster['PATH']}"
        with (folder / "said").open("w") as said:
            self.process = subprocess.Popen(
                ["bash", "-ec", commands()], cwd=folder, env=self.environment, stdout=said, stderr=said,
                start_new_session=True,
            )  # fmt: skip

    def requeue(self, n: int) -> None:
        """Puts a job of the array back into the queue while it trains, nearly half way."""
        metrics = self.folder / f"experts/{DOMAINS[n]}.run/metrics/version_0/metrics.csv"
        end = time.monotonic() + 900
        while not metrics.exists() or metrics.read_text().count("\n") < 10:  # one every ten steps
            assert self.process.poll() is None and time.monotonic() < end, self.said()
            time.sleep(0.05)
        (script,) = self.folder.rglob("*.sbatch")
        environment = self.environment | {"SLURM_CONF": f"{self.slurm}/slurm.conf"}
        subprocess.run(["scontrol", "requeue", f"{script.stem}_{n}"], env=environment, check=True)

    def model(self) -> dict[str, Any]:
        """What the commands left behind: experts and weights as bytes, and the manifest but for its date."""
        assert self.process.wait(1800) == 0, self.said()
        assert subprocess.run(["bash", LOCAL_SLURM, "status"], env=self.environment, stdout=-3).returncode == 1
        manifest = json.loads((self.folder / "model/manifest.json").read_text())
        files = [*self.folder.glob("experts/*.pt"), *self.folder.glob("model/*.safetensors")]
        made = {path.name: path.read_bytes() for path in files}
        return made | {"manifest": {name: value for name, value in manifest.items() if name != "made"}}

    def log(self, n: int) -> str:
        return "".join(path.read_text() for path in self.folder.rglob(f"*_{n}.log"))

    def said(self) -> str:
        return (self.folder / "said").read_text() + "".join(map(self.log, range(len(DOMAINS))))

    def close(self) -> None:
        if self.process.poll() is None:
            os.killpg(self.process.pid, signal.SIGTERM)
        subprocess.run(["bash", LOCAL_SLURM, "down", "--purge"], env=self.environment, check=True)


def test_followed_word_for_word_it_survives_a_requeue(
    cluster: dict[str, str], shards: Path, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    corpora, anchor = tmp_path / "corpora", tmp_path / "anchor"
    for name in ("public", *DOMAINS):
        for split, documents in (("train", 200), ("test", 20)):
            shard(corpora / name / f"{split}.jsonl.gz", name, documents)
    train_small_anchor(
        corpora / "public", anchor,
        anchor=AnchorOptions(
            vocab_size=320, hidden_size=32, intermediate_size=96, num_hidden_layers=3, num_attention_heads=4,
            num_key_value_heads=2, max_position_embeddings=256, reference_bytes=20_000,
        ),
    )  # fmt: skip
    readers = []
    for name in ("undisturbed", "requeued"):
        readers.append(Reader(tmp_path / name, corpora, anchor, cluster))
        request.addfinalizer(readers[-1].close)
    undisturbed, requeued = readers
    requeued.requeue(0)
    expected, made = undisturbed.model(), requeued.model()
    assert {*expected} == {"math.pt", "news.pt", "code.pt", "model.safetensors", "manifest"}
    assert made == expected
    assert "stopped at step " in requeued.log(0) and "resuming from experts/math.run/last.ckpt" in requeued.log(0)
