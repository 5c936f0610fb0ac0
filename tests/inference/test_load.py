from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from flexo.console import Advance
from flexo.errors import InputError
from inference.load import load_model
from tests.merge.tools import edit


def test_anchors_and_merged_folders_load(merged: Path, tiny_anchor: Path) -> None:
    for folder, kind in ((merged, "FlexOlmoForCausalLM"), (tiny_anchor, "Olmo2ForCausalLM")):
        model, tokenizer = load_model(folder)
        assert type(model).__name__ == kind and not model.training
        assert (model.dtype, model.device.type) == (torch.float32, "cuda" if torch.cuda.is_available() else "cpu")
        assert tokenizer.decode(tokenizer("the cat")["input_ids"]) == "the cat"
    model, _ = load_model(merged, "bfloat16", "cpu")
    assert model.dtype == torch.bfloat16


WEIGHTS = "model.safetensors"
EXPERT = "model.layers.1.mlp.experts.2.up_proj.weight"
GATE = "model.layers.1.mlp.gate.weight"


def cut(folder: Path) -> None:
    path = folder / WEIGHTS
    path.write_bytes(path.read_bytes()[:-1000])


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (lambda f: (f / "config.json").unlink(), "config.json: no such file. Is"),
        (lambda f: (f / "config.json").write_text("{"), "config.json: not readable as JSON"),
        (lambda f: (f / WEIGHTS).unlink(), "no model.safetensors and no model.safetensors.index.json"),
        (cut, "model.safetensors: not a whole safetensors file"),
        (lambda f: edit(f / WEIGHTS, lambda t: t.pop(GATE)), f"1 tensors are missing, {GATE} among them"),
        (lambda f: edit(f / WEIGHTS, lambda t: t.pop(EXPERT)), "transformers cannot load it"),
        (lambda f: edit(f / WEIGHTS, lambda t: t.pop("lm_head.weight")), "1 tensors are missing, lm_head.weight"),
        (
            lambda f: edit(f / WEIGHTS, lambda t: t.update({GATE: t[GATE][:2].contiguous()})),
            "transformers cannot load it",
        ),
        (lambda f: edit(f / "config.json", lambda c: c.update(num_experts=5)), "copied: "),
        (lambda f: edit(f / "config.json", lambda c: c.update(model_type="olmo9")), "transformers cannot load it"),
        (lambda f: edit(f / "config.json", lambda c: c.update(hidden_size="wide")), "transformers cannot load it"),
        (lambda f: (f / "tokenizer.json").unlink(), "transformers cannot load it"),
        (lambda f: (f / "tokenizer.json").write_text("{}"), "transformers cannot load it"),
    ],
)
def test_folders_that_are_no_whole_model_are_refused(copied: Path, damage: Callable[[Path], object], said: str) -> None:
    damage(copied)
    with pytest.raises(InputError, match=re.escape(said)):
        load_model(copied)


def test_code_beside_a_model_is_not_run(copied: Path) -> None:
    (copied / "evil.py").write_text(f"open({str(copied / 'was_run')!r}, 'w')\nclass Evil: pass\n")
    edit(
        copied / "config.json",
        lambda config: config.update(
            model_type="evil", auto_map={"AutoConfig": "evil.Evil", "AutoModelForCausalLM": "evil.Evil"}
        ),
    )
    with pytest.raises(InputError, match="transformers cannot load it"):
        load_model(copied)
    assert not (copied / "was_run").exists()


def test_what_cannot_be_had_is_refused(merged: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"gone: no such folder"):
        load_model(tmp_path / "gone")
    with pytest.raises(InputError, match=r"no such folder"):
        load_model(merged / "config.json")
    with pytest.raises(InputError, match=r"--dtype int8: expected one of auto, float32, bfloat16, float16"):
        load_model(merged, "int8")
    for device in ("warp:1", "cuda:99", "cpu:x"):
        with pytest.raises(InputError, match=rf"--device {device}: cannot be used here \(.+\). Use cpu, or auto"):
            load_model(merged, device=device)


def test_loading_says_how_far_it_is(merged: Path) -> None:
    told: list[tuple[str, float | None]] = []
    done: list[float] = []

    @contextmanager
    def progress(label: str, total: float | None) -> Iterator[Advance]:
        told.append((label, total))
        yield done.append

    model, _ = load_model(merged, progress=progress)
    assert told == [("loading the model", len(done))]
    assert len(done) == len(list(model.parameters()))
    logging: Any = transformers.utils.logging
    assert logging.set_tqdm_hook(None) is None, "what others load shows its own bar again"
