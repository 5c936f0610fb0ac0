"""What of the vLLM engine can be tested without vLLM: the rows of the plugin, and an engine that does not start."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from flexo.errors import InputError
from inference.load import load_model
from serving.engines import routing
from serving.engines.local import Served
from serving.engines.vllm import VllmEngine
from tests.serving.asked import SMALL
from tests.source_tree import ROOT

SETTING = {"experts": 3, "counted": [True, False]}


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
