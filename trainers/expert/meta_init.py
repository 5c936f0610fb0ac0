"""A model whose weights stay in their files until the place of each is known.

For runs that spread a model over devices: it is built without memory, and filled layer by layer while it is cut, so
that no process holds more of it on its host than one layer.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

import torch
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from merge.formats.expert_file import ExpertFile
from merge.formats.model_folder import ModelFolder


def blank_model(folder: Path, dtype: torch.dtype) -> PreTrainedModel:
    """The model of a folder on the meta device: shapes and dtypes, no values."""
    config, untyped = AutoConfig.from_pretrained(folder), cast(Any, AutoModelForCausalLM)
    with torch.device("meta"):
        model = untyped.from_config(config, dtype=dtype)
    model.model.rotary_emb = type(model.model.rotary_emb)(config)  # follows from the configuration and is in no file
    return model  # type: ignore[no-any-return]


class WeightsOnDisk:
    """Fills the parameters of a paired model that have no values yet, from the anchor's files.

    Args:
        model: made by `blank_model` and `paired.pair`.
        weights: the anchor's, on disk.
        begun: the file that an expert's network starts from; None: it starts from the anchor's.
    """

    def __init__(self, model: nn.Module, weights: ModelFolder, begun: ExpertFile | None = None) -> None:
        self.weights, self.begun = weights, begun
        self._names = {id(parameter): name for name, parameter in model.named_parameters() if parameter.is_meta}

    def fill(self, module: nn.Module) -> None:
        """Gives values to all parameters below `module` that have none. Those of the dtype on disk are mapped."""
        made: dict[int, nn.Parameter] = {}  # tied ones stay one
        for part in module.modules():
            for name, blank in list(part.named_parameters(recurse=False, remove_duplicate=False)):
                if blank.is_meta:
                    if id(blank) not in made:
                        values = self._values(self._names[id(blank)]).to(blank.dtype)
                        made[id(blank)] = nn.Parameter(values, requires_grad=blank.requires_grad)
                    setattr(part, name, made[id(blank)])

    def _values(self, name: str) -> torch.Tensor:
        if self.begun is not None and ".mlp.expert." in name:
            return self.begun.tensor(name.removeprefix("model.").replace(".mlp.expert.", "."))
        return self.weights.tensor(name.replace(".mlp.public.", ".mlp.").replace(".mlp.expert.", ".mlp."))
