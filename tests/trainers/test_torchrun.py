"""`torchrun` as docs/cluster.md has it, with two nodes on one machine."""

from __future__ import annotations

import re
import shlex
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from merge.formats.expert_file import open_expert
from tests.trainers.test_distributed import FSDP, ROOT, arguments, trained

pytestmark = pytest.mark.slow  # three trainings of two processes
STEPS = 100


def documented() -> str:
    """The command of the first node."""
    (command,) = re.findall(r"^(torchrun (?:.*\\\n)*.*)", (ROOT / "docs/cluster.md").read_text(), re.MULTILINE)
    return command.replace("\\\n", " ")


class TwoNodes:
    """The documented command on both nodes: one process each, and this machine's address."""

    def __init__(self, anchor: Path, shards: Path, output: Path, *settings: str) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        command = documented().replace("10.0.0.1", "127.0.0.1").replace("29500", str(port))
        words = shlex.split(command.replace("=8", "=1"))
        assert "--nnodes=2" in words and "run.nodes=2" in words and "train_expert.py" in words
        words = [str(ROOT / word) if word == "train_expert.py" else word for word in words]
        words[0] = str(Path(sys.executable).with_name(words[0]))
        given = [word for word in arguments(anchor, shards, output, *settings)[2:] if word not in words]
        self.nodes = [
            subprocess.Popen(
                [word.replace("--node-rank=0", f"--node-rank={n}") for word in words] + given,
                cwd=output.parent, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
            )
            for n in (0, 1)
        ]  # fmt: skip

    def end(self) -> tuple[list[int], str]:
        """The exit code of each node, and what both said."""
        said = "".join(part for node in self.nodes for part in node.communicate(timeout=600))
        return [node.returncode for node in self.nodes], said


def test_two_nodes_train_the_expert_of_one_node_also_when_one_of_them_was_stopped(
    small_anchor: Path, shards: Path, tmp_path: Path
) -> None:
    settings = (f"data.tokens={STEPS * 128}", "run.checkpoint_seconds=0")
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
    output = tmp_path / "two/math.pt"
    stopped = TwoNodes(small_anchor, shards, output, *settings)
    checkpoint, deadline = output.with_suffix(".run") / "last.ckpt", time.monotonic() + 1200
    while not checkpoint.exists() and stopped.nodes[0].poll() is None and time.monotonic() < deadline:
        time.sleep(0.02)
    stopped.nodes[1].send_signal(signal.SIGTERM)
    codes, said = stopped.end()
    assert 0 not in codes and "stopped at step " in said and not output.exists(), said
    codes, said = TwoNodes(small_anchor, shards, output, *settings).end()
    assert codes == [0, 0] and "resuming from" in said, said
    one = trained(small_anchor, shards, tmp_path / "one/math.pt", *settings, *FSDP)[1]
    assert open_expert(output).header.tensors == one.header.tensors
