"""`flexo-serve` as an operator types it, with engines in processes of their own."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from typer.testing import CliRunner

from merge.formats.signing import make_key
from serving.commands.flexo_serve import app
from serving.receipts.log import read_log
from tests.serving.live import until
from tests.source_tree import ROOT

PATIENCE = 600  # seconds, for a machine with other work on it
COMMAND = [sys.executable, "-m", "serving.commands.flexo_serve"]


def call(*words: str | Path, fails: bool = False) -> str:
    done = CliRunner().invoke(app, list(map(str, words)))
    assert bool(done.exit_code) == fails, done.output
    return str(done.exception) if fails else done.output


def test_keys_are_made_listed_and_revoked(tmp_path: Path) -> None:
    file = tmp_path / "keys.yaml"
    secret = call("keys", "add", "alice", "--experts", "public,math", "--keys", file, "--expires", "2999-01-01").strip()
    assert secret.startswith("flexo-") and secret not in file.read_text()
    assert "public,math" in (listed := call("keys", "list", "--keys", file)) and "until 2999-01-01" in listed
    assert "expected a day" in call(
        "keys", "add", "b", "--experts", "x", "--keys", file, "--expires", "soon", fails=True
    )
    assert call("keys", "revoke", "alice", "--keys", file) == "revoked alice\n"
    assert "MODEL and --keys: not given" in call("--port", "1", fails=True)
    assert "no log there" in call("report", tmp_path, fails=True)


@pytest.fixture
def settings(served: Path, tmp_path: Path) -> Path:
    make_key(tmp_path / "server.pem")
    (tmp_path / "model").symlink_to(served)
    path = tmp_path / "serve.yaml"
    path.write_text(
        "model: model\nkeys: keys.yaml\nlog: log\nsign: server.pem\nport: 18473\nengines: 2\nengine: {dtype: float32, "
        "device: cpu, pass_tokens: 256, block_tokens: 8, blocks: 128}\n"
    )
    return path


@pytest.fixture
def server(settings: Path) -> Iterator[subprocess.Popen[str]]:
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(
        [*COMMAND, "--config", str(settings)], cwd=ROOT, env=environment, stderr=subprocess.PIPE, text=True
    )
    yield process
    process.kill()
    process.wait()


@pytest.mark.slow  # five engines load PyTorch
def test_a_server_outlives_its_engines_and_stops_gracefully(
    settings: Path, server: subprocess.Popen[str], tmp_path: Path
) -> None:
    secret = call("keys", "add", "alice", "--experts", "public,math", "--keys", tmp_path / "keys.yaml",
                  "--requests-per-minute", "100000").strip()  # fmt: skip
    http = httpx.Client(
        base_url="http://127.0.0.1:18473", headers={"Authorization": f"Bearer {secret}"}, timeout=PATIENCE
    )

    def ready(engines: int) -> bool:
        try:
            return f"flexo_engines {engines}.0" in http.get("/metrics").text
        except httpx.TransportError:
            return False

    until(lambda: ready(2), PATIENCE)
    ask = {"prompt": "The cat", "max_tokens": 20, "temperature": 0}
    expected = http.post("/v1/completions", json=ask).json()["choices"]
    for victim in engines_of(server.pid)[:1]:
        os.kill(victim, signal.SIGKILL)
    for _ in range(20):
        assert http.post("/v1/completions", json=ask).json()["choices"] == expected
    until(lambda: ready(2), PATIENCE)
    os.kill(server.pid, signal.SIGHUP)
    end = time.monotonic() + PATIENCE
    while len([1 for _, line in read_log(tmp_path / "log") if line["what"] == "model"]) < 2:
        assert time.monotonic() < end
        assert http.post("/v1/completions", json=ask).json()["choices"] == expected
    server.terminate()
    assert server.wait(PATIENCE) in (0, 143)
    lines = list(read_log(tmp_path / "log", tmp_path / "server.pub"))
    assert len({line["id"] for _, line in lines if line["what"] == "answer"}) == len(lines) - 2
    assert server.stderr
    said = [json.loads(line) for line in server.stderr.read().splitlines()]
    assert any("has ended; it is started again" in line["message"] for line in said)
    assert not any("cat" in json.dumps(line) for line in said)
    assert "math" in call("report", tmp_path / "log", "--public", tmp_path / "server.pub")
    assert "the chain is whole" in call("check", tmp_path / "log")


def engines_of(pid: int) -> list[int]:
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return [int(child) for child in children if "spawn_main" in Path(f"/proc/{child}/cmdline").read_text()]
