"""The gates of the vLLM engine, on a vLLM that runs here: `make vllm`. FLEXO_VLLM is the Python of its environment."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from flexo.errors import InputError
from serving.engines import vllm
from serving.engines.engine import EngineOptions, Failed
from serving.engines.worker import build
from tests.inference.models import merge_domains
from tests.serving.asked import Alone, Asked, alone, close, renamed, requests
from tests.serving.conftest import KEYS, LIMITS
from tests.serving.live import live

pytestmark = pytest.mark.vllm
PYTHON = os.environ.get("FLEXO_VLLM", "")
GIVEN: dict[str, Any] = {
    "kind": "vllm", "dtype": "float32", "device": "cpu", "at_once": 32, "pass_tokens": 256, "block_tokens": 32,
    "blocks": 64, "python": PYTHON, "arguments": {"enforce_eager": True, "gpu_memory_utilization": 0.05},
}  # fmt: skip
OPTIONS = EngineOptions(**GIVEN)


@pytest.fixture(scope="module")
def served(
    make_anchor: Callable[..., Path], make_expert: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """As in the tests of other engines, in sizes that vLLM has kernels for."""
    anchor = make_anchor(hidden_size=128, intermediate_size=64)
    return merge_domains(partial(make_expert, anchor=anchor), tmp_path_factory.mktemp("served") / "model", top_k=3)


@pytest.fixture(scope="module")
def expected(served: Path) -> list[Alone]:
    return alone(served, requests())


@pytest.fixture(scope="module")
def asked(served: Path) -> Iterator[Asked]:
    with Asked(served, "vllm", OPTIONS) as running:
        yield running


@pytest.fixture(scope="module")
def long(served: Path) -> list[Alone]:
    """One prompt of 70 tokens under each of the six sets, and twelve answers of 40 tokens."""
    dice = torch.Generator().manual_seed(5)
    prompt = torch.randint(3, 96, (70,), generator=dice).tolist()
    jobs = [renamed(job, f"p{n}", tokens=prompt, score=False) for n, job in enumerate(requests()[-6:])]
    return alone(served, [*jobs, *(renamed(job, f"l{n}", max_tokens=40) for n, job in enumerate(requests()[:12]))])


def test_thirty_requests_of_six_sets_at_once(asked: Asked, expected: list[Alone]) -> None:
    assert isinstance(asked.engine, vllm.VllmEngine) and asked.engine.about["version"].startswith("0.32.")
    asked.ask(requests())
    for one in expected:
        asked.agrees(one)


def test_a_cached_beginning_is_read_by_the_same_tenant_and_set_alone(asked: Asked, long: list[Alone]) -> None:
    """So the time to the first token tells nobody what others have asked."""
    for again in range(2):
        for tenant in ("alice", "bob"):
            for one in long[:6][::-1]:
                job = renamed(one.job, f"{one.job.id}-{tenant}-{again}", tenant=tenant)
                asked.ask([job])
                asked.agrees(one, job.id)
                assert asked.ended(job.id).cached == 64 * again
    asked.ask([renamed(long[0].job, "scored", score=True)])
    assert asked.ended("scored").cached == 0


def test_cancelled_stopped_and_sampled(asked: Asked, expected: list[Alone]) -> None:
    gone = [renamed(job, f"gone{n}", max_tokens=90, score=False) for n, job in enumerate(requests()[:6])]
    beside = [renamed(one.job, f"beside-{one.job.id}") for one in expected]
    for job in [*gone, *beside]:
        asked.engine.submit(job)
    asked.wait([gone[0].id], tokens=2)
    for job in gone:
        asked.engine.cancel(job.id)
    asked.wait(job.id for job in beside)
    for one in expected:
        asked.agrees(one, f"beside-{one.job.id}")
    heard = len(asked.made(gone[0].id))
    job = replace(expected[4].job, max_tokens=30, score=False)
    asked.ask([renamed(job, "whole")])
    assert heard == len(asked.made(gone[0].id)) < 90
    whole = asked.text("whole")
    middle = whole[len(whole) // 2 : len(whole) // 2 + 3]
    asked.ask([renamed(job, "stopped", stop=["never!", middle])])
    assert asked.text("stopped") == whole[: whole.index(middle)] and asked.ended("stopped").reason == "stop"
    drawn = {"a": 1, "b": 1, "c": 2, "d": None}
    asked.ask([renamed(job, name, temperature=1.0, seed=seed) for name, seed in drawn.items()])
    a, b, c, d = ([made.token for made in asked.made(name)] for name in drawn)
    assert a == b and len({tuple(one) for one in (a, c, d)}) == 3 and not asked.engine._answering


COUNTED = """#!{python}
import runpy, sys
from vllm.v1.core.sched.scheduler import Scheduler
preempt = Scheduler._preempt_request
def told(*given, **named):
    print("preempted", flush=True)
    return preempt(*given, **named)
Scheduler._preempt_request = told
del sys.argv[1:3]
runpy.run_module("flexo_vllm.process", run_name="__main__", alter_sys=True)
"""


def test_in_chunks_and_with_a_cache_that_is_too_small_for_all(served: Path, long: list[Alone], tmp_path: Path) -> None:
    """Some requests lose their place and are computed again; their tokens count once."""
    python = tmp_path / "python"
    python.write_text(COUNTED.format(python=PYTHON))
    python.chmod(0o755)
    options = replace(OPTIONS, pass_tokens=8, at_once=6, blocks=8, python=str(python))
    with Asked(served, "vllm", options) as asked:
        asked.ask([one.job for one in long])
        for one in long:
            asked.agrees(one)
    assert isinstance(asked.engine, vllm.VllmEngine)
    asked.engine._said.seek(0)
    assert b"preempted" in asked.engine._said.read()


@pytest.mark.parametrize("value", [float("nan"), 1e30])
def test_a_broken_expert_breaks_the_answers_of_those_who_may_use_it_alone(
    served: Path, expected: list[Alone], tmp_path: Path, value: float
) -> None:
    folder = tmp_path / "broken"
    shutil.copytree(served, folder)
    for shard in folder.glob("*.safetensors"):
        tensors = load_file(shard)
        for name, tensor in tensors.items():
            if ".experts.3." in name:
                tensor.fill_(value)
            elif name.endswith("gate.weight"):
                tensor[3] = value
        save_file(tensors, shard, metadata={"format": "pt"})
    with Asked(folder, "vllm", OPTIONS) as asked:
        asked.ask(requests())
        for one in expected:
            if "code" not in one.job.experts:
                asked.agrees(one)
            else:
                last = asked.events[one.job.id][-1]
                assert isinstance(last, Failed) and "not finite" in last.why and not asked.made(one.job.id)
        asked.ask([renamed(expected[0].job, "after")])
        asked.agrees(expected[0], "after")


def test_half_precision(served: Path) -> None:
    jobs = [renamed(job, job.id, score=True) for job in requests()]
    with Asked(served, "vllm", replace(OPTIONS, dtype="bfloat16")) as asked:
        asked.ask(jobs)
        asked.agrees_roughly(alone(served, jobs))


def test_over_http_with_receipts_and_a_killed_process(
    served: Path, expected: list[Alone], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with live(tmp_path, served, {"all": KEYS["all"] | LIMITS}, engine=GIVEN) as server:
        for one in expected[:6]:
            body = {"prompt": [0, *one.job.tokens], "max_tokens": 4, "temperature": 0, "experts": list(one.job.experts)}
            answer = server.post(body).json()
            receipt = server.get(f"/v1/receipts/{answer['id']}").json()
            assert set(receipt["shares"]) <= set(one.job.experts) and answer["usage"]["completion_tokens"] == 4
        assert server.answers().keys() >= {answer["id"]}
        (same,) = alone(served, [renamed(one.job, "same", tokens=body["prompt"], max_tokens=4)])
        several = server.post(body | {"n": 2, "logprobs": 0}).json()
        for choice in several["choices"]:
            assert choice["text"] == answer["choices"][0]["text"]
            close(choice["logprobs"]["token_logprobs"], same.logprobs, 2e-5)
        assert len(several["choices"]) == 2 and several["usage"]["completion_tokens"] == 8
        drawn = server.post(body | {"n": 2, "temperature": 1, "seed": 1, "max_tokens": 12}).json()["choices"]
        assert drawn[0]["text"] != drawn[1]["text"]
    ended = []
    engine = build(served, OPTIONS, lambda _events: None, lambda: ended.append(True))
    assert isinstance(engine, vllm.VllmEngine)
    engine.process.kill()
    engine._thread.join(60)
    assert ended == [True]
    submit = vllm.VllmEngine.submit
    everything = ["public", "math", "news", "code"]
    monkeypatch.setattr(vllm.VllmEngine, "submit", lambda self, job: submit(self, replace(job, experts=everything)))
    with pytest.raises(InputError, match="Selections are not in force, and nothing is served"):
        build(served, OPTIONS, print)


@pytest.mark.parametrize(
    ("environment", "arguments", "said"),
    [
        ({"VLLM_PLUGINS": "none"}, {}, "FlexoEntitledForCausalLM"),
        ({}, {"enable_expert_parallel": True}, "do not hold under expert parallel"),
        ({}, {"hf_overrides": {}}, "hf_overrides cannot be chosen here"),
    ],
)
def test_it_does_not_start(
    served: Path, monkeypatch: pytest.MonkeyPatch, environment: dict[str, str], arguments: dict[str, Any], said: str
) -> None:
    monkeypatch.setattr(vllm, "ENVIRONMENT", vllm.ENVIRONMENT | environment)
    with pytest.raises(InputError, match=said):
        Asked(served, "vllm", replace(OPTIONS, arguments=GIVEN["arguments"] | arguments))


def test_what_cannot_be_honoured_is_found() -> None:
    code = """
from types import SimpleNamespace as Config
from flexo_vllm.model import cannot_be_honoured
names = ["enable_eplb", "enable_expert_parallel", "use_sequence_parallel_moe", "use_ubatching"]
sizes = ["data", "pipeline", "prefill_context", "decode_context"]
how = {name: False for name in names} | {f"{name}_parallel_size": 1 for name in sizes}
whole = {"speculative_config": None, "lora_config": None, "kv_transfer_config": None}
def wrong(scheduling=False, parallel={}, **given):
    parts = {"parallel_config": Config(**how | parallel), "scheduler_config": Config(async_scheduling=scheduling)}
    return len(cannot_be_honoured(Config(**whole | parts | given)))
assert wrong() == 0 and wrong(scheduling=True) == 1
assert all(wrong(**{name: 1}) == 1 for name in whole)
assert all(wrong(parallel={name: 2}) == 1 for name in how)
"""
    subprocess.run([PYTHON, "-c", code], check=True)
