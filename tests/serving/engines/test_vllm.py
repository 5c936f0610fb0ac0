"""The gates of the vLLM engine, on a vLLM that runs here: `make vllm`. FLEXO_VLLM is the Python of its environment."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from flexo.errors import InputError
from serving.engines.engine import EngineOptions, Failed, Job
from serving.engines.worker import build
from tests.inference.models import merge_domains
from tests.serving.asked import SETS, Alone, Asked, alone, renamed, requests

pytestmark = pytest.mark.vllm
PYTHON = os.environ.get("FLEXO_VLLM", "")
OPTIONS = EngineOptions(
    kind="vllm", dtype="float32", device="cpu", at_once=32, pass_tokens=256, block_tokens=32, blocks=64, python=PYTHON,
    arguments={"enforce_eager": True, "gpu_memory_utilization": 0.05},
)  # fmt: skip


@pytest.fixture(scope="module")
def asked(served: Path) -> Iterator[Asked]:
    with Asked(served, "vllm", OPTIONS) as running:
        yield running


def test_thirty_requests_of_six_sets_at_once(asked: Asked, expected: list[Alone]) -> None:
    asked.ask(requests())
    for one in expected:
        asked.agrees(one)
