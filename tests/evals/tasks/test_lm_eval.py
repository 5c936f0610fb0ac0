"""The folder under lm-eval itself: the YAML asks what it should and judges rightly, and a merged folder can be run."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import evals.commands.flexo_tasks
from evals.scoring.held_out import read_texts
from evals.scoring.measure import bits_per_byte
from inference.load import load_model
from inference.select import select_experts
from tests.merge.tools import call

pytestmark = pytest.mark.slow  # lm-eval reads thousands of task files of its own before it starts
lm_eval = pytest.importorskip("lm_eval", reason="lm-eval is not installed: pip install 'flexo[lm-eval]'")
SETTINGS = ["--model", "hf", "--tasks", "flexo", "--device", "cpu", "--batch_size", "16", "--limit", "16"]


@pytest.fixture(scope="module")
def folder(library: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Tasks of two domains, moved after they were made."""
    made = tmp_path_factory.mktemp("made") / "tasks"
    assert call(evals.commands.flexo_tasks.main, library, "-o", made, "--questions", "40") == 0
    return made.rename(tmp_path_factory.mktemp("moved") / "tasks")


def evaluated(model: Any, folder: Path, tasks: str = "flexo") -> Any:
    from lm_eval import simple_evaluate
    from lm_eval.tasks import TaskManager

    manager = TaskManager(include_path=str(folder))
    return simple_evaluate(model=model, tasks=[tasks], task_manager=manager, bootstrap_iters=0)


def respondent(truth: dict[str, str], knows: bool) -> Any:
    """Someone who knows every answer, or who likes some answers more than others whatever is asked."""
    from lm_eval.api.model import LM

    class Respondent(LM):  # type: ignore[misc]
        def loglikelihood(self, requests: list[Any]) -> list[tuple[float, bool]]:
            pairs = [request.args for request in requests]
            if knows:
                return [(-1.0 + (truth.get(asked) == said.removeprefix(" ")), False) for asked, said in pairs]
            return [(-float(sum(said.encode())), False) for _, said in pairs]

        def loglikelihood_rolling(self, requests: list[Any]) -> list[float]:
            return [-1.5 * math.log(2) * len(request.args[0].encode()) for request in requests]

        def generate_until(self, requests: list[Any]) -> list[str]:
            return [f" {truth[request.args[0]]}{'.' if knows else '0'}\n1" for request in requests]

    return Respondent()


def test_who_knows_is_always_right_and_who_does_not_is_right_in_one_of_four(folder: Path) -> None:
    lines = [line for path in folder.glob("*.jsonl") if "text" not in path.name for line in path.open()]
    rows = [json.loads(line) for line in lines]
    truth = {row["prompt"]: row["choices"][row["answer"]] if "choices" in row else row["answer"] for row in rows}
    for knows, accuracy in ((True, 1.0), (False, 0.25)):
        results = evaluated(respondent(truth, knows), folder)["results"]
        assert results["flexo_arithmetic"]["exact_match,number"] == float(knows)
        for task in ("flexo_arithmetic_choice", "flexo_choices_educational"):
            assert results[task]["acc,none"] == results[task]["acc_mutual_info,none"] == accuracy
        for task in ("flexo_text_public", "flexo_text_educational", "flexo_text"):
            assert results[task]["bits_per_byte,none"] == pytest.approx(1.5)


def test_a_merged_folder_offline_from_the_command_line(
    folder: Path, merged: Path, library: Path, tmp_path: Path
) -> None:
    """Documents that fit into the window get the bits per byte of flexo-eval."""
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path / "cache")}
    command = [sys.executable, "-m", "lm_eval", *SETTINGS, "--model_args", f"pretrained={merged}"]
    done = subprocess.run(
        [*command, "--include_path", folder, "--output_path", tmp_path / "out"],
        cwd=tmp_path, env=environment, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    (written,) = (tmp_path / "out").rglob("results_*.json")
    results = json.loads(written.read_text())["results"]
    text = read_texts({"public": library / "public/test.jsonl"}, merged, 10**6)["public"]
    assert max(map(len, text.documents)) < 128
    expected = bits_per_byte(load_model(merged)[0], text, length=128)
    assert results["flexo_text_public"]["bits_per_byte,none"] == pytest.approx(expected, rel=1e-5)
    assert 0 <= results["flexo_choices_educational"]["acc,none"] <= 1


def test_a_selection_of_experts_in_this_process(folder: Path, merged: Path, library: Path) -> None:
    from lm_eval.models.huggingface import HFLM

    model, tokenizer = load_model(merged, device="cpu")
    text = read_texts({"public": library / "public/test.jsonl"}, merged, 10**6)["public"]
    with select_experts(model, ["public", "news"]):
        found = evaluated(HFLM(pretrained=model, tokenizer=tokenizer), folder, "flexo_text_public")
        expected = bits_per_byte(model, text, length=128)
    assert found["results"]["flexo_text_public"]["bits_per_byte,none"] == pytest.approx(expected, rel=1e-5)
    assert expected != pytest.approx(bits_per_byte(model, text, length=128), rel=1e-4)
