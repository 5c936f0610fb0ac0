"""Whatever lies in a model folder, transformers loads the weights that we read, or the folder is refused."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from flexo.errors import ModelFolderError
from merge.formats.anchor_folder import open_anchor
from merge.formats.model_folder import ModelFolder
from merge.model_files.weight_files import weight_files
from tests.merge.tools import edit

EMBEDDING, HEAD = "model.embed_tokens.weight", "lm_head.weight"


@pytest.fixture
def folder(tiny_anchor: Path, tmp_path: Path) -> Path:
    shutil.copytree(tiny_anchor, tmp_path / "anchor")
    return tmp_path / "anchor"


def shard(folder: Path, change: Callable[[dict[str, Any]], object] = lambda _tensors: None) -> None:
    """Puts the weights into two shards, too."""
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    names = sorted(tensors)
    files = {"model-00001-of-00002.safetensors": names[:9], "model-00002-of-00002.safetensors": names[9:]}
    for file, part in files.items():
        save_file({name: tensors[name] for name in part}, folder / file, {"format": "pt"})
    weight_map = {name: file for file, part in files.items() for name in part}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))


def only_shards(folder: Path) -> None:
    shard(folder)
    (folder / "model.safetensors").unlink()


def tied(folder: Path) -> None:
    edit(folder / "config.json", lambda config: config.update(tie_word_embeddings=True))
    edit(folder / "model.safetensors", lambda tensors: tensors.update({HEAD: tensors[EMBEDDING].clone()}))


def beside(name: str) -> Callable[[Path], None]:
    return lambda folder: save_file({HEAD: torch.zeros(2)}, folder / name, {"format": "pt"})


@pytest.mark.parametrize(
    "make", [lambda _folder: None, shard, only_shards, beside("consolidated.safetensors"), beside("x.bin"), tied]
)
def test_transformers_loads_what_we_read(folder: Path, make: Callable[[Path], None], tiny_anchor: Path) -> None:
    make(folder)
    opened = ModelFolder(folder)
    loaded = AutoModelForCausalLM.from_pretrained(folder).state_dict()
    assert opened.names == loaded.keys() - ({HEAD} if make is tied else set())
    for name, tensor in loaded.items():
        assert torch.equal(opened.tensor(EMBEDDING if make is tied and name == HEAD else name), tensor), name
    if make is not tied:
        assert opened.digest() == open_anchor(tiny_anchor).digest
    assert {path.name for path in weight_files(folder)} <= {path.name for path in folder.iterdir()}


def test_a_tied_head_that_is_stored_changes_no_digest(folder: Path) -> None:
    tied(folder)
    with_head = open_anchor(folder).digest
    edit(folder / "model.safetensors", lambda tensors: tensors.pop(HEAD))
    assert open_anchor(folder).digest == with_head


def setting(**values: Any) -> Callable[[Path], None]:
    return lambda folder: edit(folder / "config.json", lambda config: config.update(values))


def adapted(folder: Path) -> None:
    (folder / "adapter_config.json").write_text("{}")


def misplaced(folder: Path) -> None:
    only_shards(folder)
    edit(
        folder / "model.safetensors.index.json",
        lambda index: index["weight_map"].update({HEAD: "model-00002-of-00002.safetensors"}),
    )


def unlisted(folder: Path) -> None:
    only_shards(folder)
    edit(folder / "model.safetensors.index.json", lambda index: index["weight_map"].pop(HEAD))


def replaced(folder: Path) -> None:
    only_shards(folder)
    (folder / "model-00002-of-00002.safetensors").rename(folder / "model-00003-of-00003.safetensors")


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda f: shard(f, lambda t: t[HEAD].mul_(2)), r"two sets of weights, .*'lm_head\.weight' is not the same"),
        (lambda f: shard(f, lambda t: t.update({HEAD: t[HEAD].half()})), r"two sets of weights, .*lm_head\.weight"),
        (lambda f: shard(f, lambda t: t.pop(HEAD)), r"two sets of weights, .*lm_head\.weight"),
        (setting(transformers_weights="other.safetensors"), "transformers_weights is 'other.safetensors'"),
        (adapted, r"adapter_config\.json: an adapter lies beside the weights"),
        (misplaced, r"'lm_head\.weight' is in model-00001-of-00002\.safetensors, the index has it in model-00002"),
        (unlisted, r"'lm_head\.weight' is in model-00001-of-00002\.safetensors, the index has it in no file"),
        (replaced, "the index names this shard, but it is missing"),
        (setting(tie_word_embeddings=True), r"ties the embeddings .* lm_head\.weight is stored and differs"),
    ],
)
def test_folders_of_which_programs_read_different_weights_are_refused(
    folder: Path, make: Callable[[Path], None], message: str
) -> None:
    make(folder)
    with pytest.raises(ModelFolderError, match=message):
        open_anchor(folder)
