"""An existing OLMo-2 becomes an anchor as it is, or is refused with the reason."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hydra import compose, initialize_config_dir
from safetensors.torch import load_file

from flexo.config_dir import config_dir
from flexo.errors import InputError
from inference.generate import Sampling, generate
from merge.formats.anchor_folder import about, open_anchor
from merge.planning.merge_plan import execute, plan
from tests.conftest import MakeExpert
from tests.merge.tools import edit, listing
from tests.trainers.runs import train_small_anchor
from trainers.anchor.adoption import open_adopted
from trainers.anchor.train import AnchorOptions
from trainers.entry.hydra_entry import read

NORM = "model.norm.weight"
Adopt = Callable[..., list[str]]


@pytest.fixture
def given(tiny_anchor: Path, tmp_path: Path) -> Path:
    """A model as somebody brings it."""
    return shutil.copytree(tiny_anchor, tmp_path / "given", ignore=shutil.ignore_patterns("flexo"))


@pytest.fixture
def adopt(given: Path, shards: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Adopt:
    """Makes `given` the anchor `taken`; returns the lines that it is told."""

    def run(heads: int | None = None) -> list[str]:
        options = AnchorOptions(path=str(given), context_heads=heads, reference_bytes=20_000)
        train_small_anchor(shards / "public", tmp_path / "taken", anchor=options)
        return capsys.readouterr().out.splitlines()

    return run


@pytest.mark.parametrize(
    ("settings", "heads"),
    [
        ([], 8),
        (["anchor=small"], 8),
        (["anchor.path=x"], 0),
        (["anchor=olmo2_1b"], 0),
        (["anchor=small", "anchor.path=x"], 0),
        (["anchor.path=x", "anchor.context_heads=8"], 8),
        (["anchor.context_heads=0"], 0),
    ],
    ids=str,
)
def test_a_model_that_is_taken_gets_no_context_layer_unless_it_is_asked_for(settings: list[str], heads: int) -> None:
    with initialize_config_dir(str(config_dir()), version_base="1.3"):
        cfg = compose("train_anchor", ["data.path=text", *settings])
    assert read(cfg, "anchor", AnchorOptions).heads == heads


def test_nothing_of_a_trainer_reaches_the_owners(given: Path, adopt: Adopt, tmp_path: Path) -> None:
    edit(given / "config.json", lambda config: config.update(_name_or_path="/home/me/private/run"))
    for name in ("optimizer.pt", "training_args.bin", "events.out.tfevents.1"):
        (given / name).write_text("of a run")
    said = adopt()
    assert said == [
        "config.json: left out _name_or_path: how the model was loaded or run, not what it computes",
        "not copied, for it is no part of the model: events.out.tfevents.1, optimizer.pt, training_args.bin",
    ]
    taken = tmp_path / "taken"
    model = {"config.json", "generation_config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"}
    assert listing(taken) == model | {"flexo"}
    assert (taken / "model.safetensors").read_bytes() == (given / "model.safetensors").read_bytes()
    assert about(taken)["taken_from"] == "given" and about(taken)["revision"] is None
    texts = [path.read_text() for path in taken.rglob("*.json")]
    assert not [text for text in texts if "/home/me" in text or str(tmp_path) in text]


def test_settings_of_a_loader_go_where_whole_weights_are_stored(given: Path, adopt: Adopt, tmp_path: Path) -> None:
    plain = json.loads((given / "config.json").read_text())
    bits = {"quant_method": "bitsandbytes", "load_in_4bit": True}
    edit(given / "config.json", lambda config: config.update(quantization_config=bits))
    with pytest.raises(InputError, match=r"quantization_config is .*anchor\.path= leaves the setting out"):
        open_anchor(given)
    assert "left out quantization_config" in adopt()[0]
    assert json.loads((tmp_path / "taken" / "config.json").read_text()) == plain
    edit(given / "model.safetensors", lambda tensors: tensors.update({"model.norm.weight.absmax": torch.ones(1)}))
    with pytest.raises(InputError, match=r"absmax\. .* quantised weights cannot be an anchor"):
        open_adopted(given)


def test_rows_are_measured_on_the_stored_weights(given: Path, adopt: Adopt, tmp_path: Path) -> None:
    """config.json may name another dtype than that of the weights; it is that of training."""
    edit(given / "config.json", lambda config: config.update(dtype="bfloat16"))
    assert open_adopted(given).model().dtype == torch.float32
    adopt(heads=1)
    assert {tensor.dtype for tensor in load_file(tmp_path / "taken" / "model.safetensors").values()} == {torch.float32}


def test_settings_of_generation_come_along_as_they_are(given: Path, adopt: Adopt, tmp_path: Path) -> None:
    """Also those that transformers would not write, beside a model that gets a context layer."""
    edit(given / "generation_config.json", lambda config: config.update(temperature=0.6, do_sample=False))
    adopt(heads=1)
    taken = (tmp_path / "taken" / "generation_config.json").read_bytes()
    assert taken == (given / "generation_config.json").read_bytes()


@pytest.mark.parametrize("change", [{"max_position_embeddings": -1}, {"eos_token_id": [0, 5]}], ids=str)
def test_unusual_settings_work_all_the_way(
    given: Path, adopt: Adopt, make_expert: MakeExpert, tmp_path: Path, change: dict[str, Any]
) -> None:
    edit(given / "config.json", lambda config: config.update(change))
    assert adopt() == []
    expert = make_expert("math", anchor=tmp_path / "taken")
    execute(plan([expert], tmp_path / "taken"), tmp_path / "model")
    merged = json.loads((tmp_path / "model" / "config.json").read_text())
    assert merged.items() >= change.items()
    made = generate(tmp_path / "model", "the cat", sampling=Sampling(200 if -1 in change.values() else 5))
    assert made.answer is not None and made.answer.tokens


def more_tokens(folder: Path) -> None:
    edit(folder / "tokenizer.json", lambda tokenizer: tokenizer["model"]["vocab"].update({"zz": 96}))


def whole_numbers(folder: Path) -> None:
    edit(folder / "model.safetensors", lambda tensors: tensors.update({NORM: tensors[NORM].int()}))


def configured(**values: Any) -> Callable[[Path], None]:
    return lambda folder: edit(folder / "config.json", lambda config: config.update(values))


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (configured(sliding_window=64), "sliding_window is 64"),
        (configured(pad_token_id=96), "pad_token_id is 96, .* below vocab"),
        (configured(use_cache=3), "use_cache is 3, expected true or false"),
        (lambda folder: (folder / "tokenizer.json").unlink(), r"tokenizer\.json: not a readable tokenizer"),
        (more_tokens, r"tokenizer\.json: has a token of the id 96, the model has embeddings for 96"),
        (whole_numbers, "holds F32, I32, expected floating-point weights"),
    ],
)
def test_what_is_no_olmo2_is_refused_and_nothing_is_written(
    given: Path, adopt: Adopt, tmp_path: Path, spoil: Callable[[Path], object], message: str
) -> None:
    spoil(given)
    with pytest.raises(InputError, match=message):
        adopt()
    assert not list(tmp_path.glob("*taken*"))
