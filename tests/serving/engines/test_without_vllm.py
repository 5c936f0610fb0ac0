"""What of the vLLM engine can be tested without vLLM: the rows of the plugin, and an engine that does not start."""

from __future__ import annotations

import json
import os
import queue
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from multiprocessing.connection import Connection
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from flexo.errors import InputError
from inference.load import load_model
from serving.engines import routing
from serving.engines.engine import Event, Failed, Job
from serving.engines.local import Served
from serving.engines.vllm import VllmEngine
from tests.serving.asked import SMALL
from tests.source_tree import ROOT

SETTING = {"experts": 3, "counted": [True, False]}
PRETENDER = """#!{python}
import json, sys
from multiprocessing.connection import Connection
pipe = Connection(int(sys.argv[3]))
hear, say = pipe.recv_bytes, lambda message: pipe.send_bytes(json.dumps(message).encode())
hear()
say({{"ready": {{"version": "0", "runner": "V1"}}}})
{program}
"""
LOADING = """
import pathlib, time
def EngineArgs(**given):
    (pathlib.Path(__file__).parent.parent / "loading").touch()
    time.sleep(600)
class LLMEngine: ...
class RequestOutput: ...
"""
REFUSING = """
__version__ = "0"
EngineArgs = TokensPrompt = dict
class LLMEngine:
    class vllm_config:
        use_v2_model_runner = False
    from_engine_args = classmethod(lambda cls, _arguments: cls())
    has_unfinished_requests = lambda self: False
class RequestOutput: ...
def SamplingParams(**given):
    raise ValueError("no such seed")
"""


class Heard:
    """What an engine has told."""

    engine: VllmEngine

    def __init__(self) -> None:
        self.events: queue.Queue[list[tuple[str, Event]]] = queue.Queue()
        self.ended = threading.Event()


@pytest.fixture
def module(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """`flexo_vllm.rows` as it is in the plugin's wheel, where `routing.py` lies beside it."""
    monkeypatch.syspath_prepend(str(ROOT / "serving/vllm_plugin"))
    monkeypatch.setitem(sys.modules, "flexo_vllm.routing", routing)
    from flexo_vllm import rows

    yield rows
    for name in ("flexo_vllm", "flexo_vllm.rows"):
        del sys.modules[name]


def asked(given: Any) -> SimpleNamespace:
    return SimpleNamespace(extra_args={"flexo": given})


def test_what_is_not_wholly_understood_gets_the_public_expert_alone(module: Any) -> None:
    rows = module.Rows(SETTING, 8, torch.device("cpu"))
    for wrong in (None, [], "all", [True] * 2, [True] * 4, [1, 1, 1], [False] * 3, [True, None, True], {"experts": 3}):
        assert rows.allowed(asked(wrong)) == [True, False, False], wrong
    for params in (None, SimpleNamespace(), SimpleNamespace(extra_args=None)):
        assert rows.allowed(params) == [True, False, False]
    assert rows.allowed(asked([False, True, True])) == [False, True, True]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_pass_that_nobody_has_prepared_uses_the_public_expert_alone(module: Any, dtype: torch.dtype) -> None:
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)  # vLLM builds a model so
    rows = module.Rows(SETTING, 8, torch.device("cpu"))
    torch.set_default_dtype(before)
    logits_NE = torch.tensor([[0.0, 5.0, 9.0]], dtype=dtype).repeat(8, 1)
    buffer = rows.allowed_NE.data_ptr()
    for _ in range(2):
        weight_NK, index_NK = rows.route(logits_NE, 2, True, True)
        assert index_NK.eq(0).all() and index_NK.dtype == torch.int32
        assert weight_NK.tolist() == [[1, 0]] * 8
        rows.begin(module.Plan([[False, True, True], [False, True, False]], [2, 3], [("a", 1), ("b", 4)]))
        _, index_NK = rows.route(logits_NE, 2, True, True)
        rows.route(logits_NE.flip(1), 2, True, False)  # a layer that does not count
        assert index_NK.tolist() == [[2, 1]] * 2 + [[1, 1]] * 3 + [[0, 0]] * 3  # what pads it: public
        rows.end()
        (a, shares), b = rows.take()
        assert a == "a" and b == ("b", [0, 1, 0])
        torch.testing.assert_close(torch.tensor(shares), torch.tensor([0, *torch.tensor([5.0, 9.0]).softmax(0)]))
        assert rows.take() == [] and rows.allowed_NE.data_ptr() == buffer


def test_an_engine_without_its_python_or_plugin_is_refused(served: Path) -> None:
    """In the environment of flexo, whose Python has no plugin."""
    model, tokenizer = load_model(served, "float32", "cpu")
    for options, said in (
        ({"python": "/nowhere/python"}, "cannot be run"),
        ({"python": sys.executable}, "vLLM does not start: .*No module named"),
        ({"python": sys.executable, "arguments": {"max_num_seqs": 1}}, "max_num_seqs follow"),
    ):
        with pytest.raises(InputError, match=said):
            VllmEngine(Served.of(model, tokenizer), print, replace(SMALL, kind="vllm", **options), print)


@pytest.fixture
def pretended(served: Path, tmp_path: Path) -> Iterator[Callable[[str], Heard]]:
    """`pretended(program)`: an engine whose vLLM is that program, once it has heard what to start with."""
    model, tokenizer = load_model(served, "float32", "cpu")
    open_ones: list[Heard] = []

    def start(program: str) -> Heard:
        python = tmp_path / "python"
        python.write_text(PRETENDER.format(python=sys.executable, program=program))
        python.chmod(0o755)
        options = replace(SMALL, kind="vllm", python=str(python), blocks=100_000)
        heard = Heard()
        of = replace(Served.of(model, tokenizer), positions=float("inf"))
        heard.engine = VllmEngine(of, heard.events.put, options, heard.ended.set)
        open_ones.append(heard)
        return heard

    yield start
    for heard in open_ones:
        heard.engine.close()


@pytest.mark.parametrize(
    ("said", "why", "ends"),
    [
        ('{"made": [{"id": "a", "over": True, "cached": 0, "tokens": []}]}', "before its end", False),
        ('{"made": [{"id": "a"}]}', "the engine has stopped", True),
        ('{"failed": ["a", "no seed"]}', "no seed", False),
    ],
    ids=["over", "garbled", "failed"],
)
def test_no_request_waits_for_an_answer_that_will_not_come(
    pretended: Callable[[str], Heard], said: str, why: str, ends: bool
) -> None:
    heard = pretended(f"hear(); say({said}); hear()")
    heard.engine.submit(Job("a", "alice", ["public"], [5, 6], 3))
    ((job, event),) = heard.events.get(timeout=60)
    assert job == "a" and isinstance(event, Failed) and why in event.why
    if ends:
        assert heard.ended.wait(60) and heard.engine.process.returncode is not None
        heard.engine.submit(Job("b", "alice", ["public"], [5, 6], 3))
        assert heard.events.get(timeout=60) == [("b", Failed("the engine has stopped.", again=True))]


def test_nobody_waits_for_a_vllm_that_does_not_read(pretended: Callable[[str], Heard]) -> None:
    """It does not read during a pass. Would a request wait meanwhile, and the thread that listens for it, all stood."""
    heard = pretended("import time; time.sleep(600)")
    long = Job("a", "alice", ["public"], [5] * 300_000, 3)
    asking = threading.Thread(target=heard.engine.submit, args=(long,), daemon=True)
    asking.start()
    asking.join(20)
    assert not asking.is_alive()
    heard.engine.cancel("a")


def started(folder: Path, stub: str) -> tuple[subprocess.Popen[bytes], Connection]:
    """The process of the plugin with a `vllm` that is `stub`, and the other end of its socket."""
    (folder / "vllm").mkdir()
    (folder / "vllm" / "__init__.py").write_text(stub)
    (folder / "vllm" / "sampling_params.py").write_text("class RequestOutputKind: DELTA = 1")
    ours, theirs = socket.socketpair()
    process = subprocess.Popen(
        [sys.executable, "-m", "flexo_vllm.process", str(theirs.fileno())],
        pass_fds=[theirs.fileno()],
        env=os.environ | {"PYTHONPATH": f"{folder}:{ROOT / 'serving/vllm_plugin'}"},
    )
    theirs.close()
    pipe = Connection(ours.detach())
    pipe.send_bytes(json.dumps({"start": {"arguments": {}, "setting": SETTING}}).encode())
    return process, pipe


def test_a_process_that_hangs_ends_with_the_gateway(tmp_path: Path) -> None:
    """While it loads, or in a pass, it does not look at the socket."""
    process, pipe = started(tmp_path, LOADING)
    while not (tmp_path / "loading").exists():
        assert process.poll() is None
        time.sleep(0.01)
    pipe.close()
    try:
        assert process.wait(60) == 1
    finally:
        process.kill()


def test_a_request_that_vllm_refuses_ends_no_other(tmp_path: Path) -> None:
    process, pipe = started(tmp_path, REFUSING)
    assert json.loads(pipe.recv_bytes())["ready"]["version"] == "0"
    fields = ("temperature", "top_p", "seed", "max_tokens", "top", "score", "ends", "allowed", "tokens", "salt")
    for name in "ab":
        pipe.send_bytes(json.dumps({"ask": dict.fromkeys(fields) | {"id": name}}).encode())
        assert json.loads(pipe.recv_bytes()) == {"failed": [name, "no such seed"]}
    pipe.close()
    assert process.wait(60) in (0, 1)
