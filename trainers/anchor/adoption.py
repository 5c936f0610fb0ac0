"""An existing OLMo-2 taken as it is: what of its folder is an anchor, and what stays behind."""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import AutoModelForCausalLM, Olmo2Config, PreTrainedModel

from flexmix.tokens.encoder import load_tokenizer
from flexo.errors import InputError, ModelFolderError
from merge.formats.anchor_folder import open_olmo2
from merge.formats.architecture import architecture_of
from merge.formats.model_folder import ModelFolder
from merge.model_files.config_keys import LEFT_OUT, QUANTISED
from merge.model_files.kept_files import copy_kept, left_behind
from merge.tensor_io.json_file import read_json
from merge.tensor_io.stored_tensor import FLOATS


@dataclass(frozen=True)
class Adopted:
    """A checked OLMo-2 folder; `open_adopted` makes it."""

    folder: Path
    weights: ModelFolder
    config: Olmo2Config  # without settings that say nothing about the model

    def model(self) -> PreTrainedModel:
        """The model in the dtype of its embeddings on disk, whatever config.json says."""
        loaded: PreTrainedModel = AutoModelForCausalLM.from_pretrained(
            self.folder,
            config=self.config,
            dtype=self.weights.dtype("model.embed_tokens.weight"),
            local_files_only=True,
        )
        return loaded

    def copy(self, folder: Path, tell: Callable[[str], None], but: Collection[str] = ()) -> None:
        """Copies all that belongs to the model, files named in `but` aside; says what was left out and behind."""
        for file, names in copy_kept(self.folder, folder, but).items():
            tell(f"{file}: left out {', '.join(names)}: how the model was loaded or run, not what it computes")
        if names := left_behind(self.folder):
            tell(f"not copied, for it is no part of the model: {', '.join(names)}")


def open_adopted(folder: Path) -> Adopted:
    """Opens an existing OLMo-2 that is to become an anchor.

    Raises `InputError` unless the folder holds one whole set of weights, settings that are those of an OLMo-2, and a
    tokenizer that fits.
    """
    config: dict[str, Any] = read_json(folder / "config.json")
    kept = {name: value for name, value in config.items() if name not in LEFT_OUT | {QUANTISED}}
    architecture_of(kept, str(folder))
    try:
        weights = open_olmo2(folder, kept)
        dtypes = {weights.stored(name).dtype for name in weights.names}
        if not dtypes <= {*FLOATS}:
            raise ModelFolderError(f"{folder}: holds {', '.join(sorted(dtypes))}, expected floating-point weights.")
    except ModelFolderError as error:
        if config.get(QUANTISED) is None:
            raise
        raise ModelFolderError(
            f"{error} Its config.json has a {QUANTISED}: quantised weights cannot be an anchor. Take the model that "
            "they were made from."
        ) from None
    last, rows = max(load_tokenizer(folder)[0].get_vocab().values()), weights.config["vocab_size"]
    if last >= rows:
        raise InputError(
            f"{folder / 'tokenizer.json'}: has a token of the id {last}, the model has embeddings for {rows}. Is it "
            "the tokenizer of another model?"
        )
    try:
        return Adopted(folder, weights, Olmo2Config(**kept))
    except Exception as error:  # its checks are of many kinds, and differ between versions
        raise InputError(f"{folder / 'config.json'}: transformers does not take it ({error}).") from None
