"""Which experts made each generated token: what the routers chose while a `with` block was open, by answer.

    with attribute(model) as record:
        x_BS = model.generate(**inputs, max_new_tokens=50)
    for answer in record.answers(x_BS, prompt=inputs["input_ids"].shape[1]):
        print(answer.shares)                                      # {"public": 0.31, "math": 0.69}

A token is credited to the experts of the position that it was predicted from. The rest of the prompt is not counted:

    read       E    The  sky  is   blue  .
    made                      blue .     E
    credited                  *    *     *

A layer adds up its active experts with the router's weights. These do not sum to one, for the softmax runs over all
experts and is not made up for those left out; the norm behind the sum cancels its scale. So what counts is each
weight's part of the sum of the active ones. Every token counts the same, and so does every layer whose experts differ:
one in which all are the same network, as in a context layer, is not counted.

B sequences, S tokens of a sequence with its prompt, T generated ones, L layers, E experts of the model, K active ones.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from flexo.errors import InputError
from inference.router_health import layers_that_choose
from inference.select import manifest_experts


@dataclass(frozen=True)
class Expert:
    """An expert as the manifest beside the model names it; fields that it lacks are empty."""

    domain: str
    title: str
    licence: str
    contact: str  # its owner


@dataclass(frozen=True)
class Answer:
    """The generated tokens of one sequence, and the experts behind them."""

    experts: list[Expert]  # [E], in the order of the model; those that took no part too
    tokens: list[int]  # [T], the end-of-text token included
    weight_TLE: torch.Tensor  # noqa: N815 - float64, the router's weights as the model used them; 0 where not active
    chooses: list[bool]  # [L], whether a layer's experts differ; the others are left out of what is a mean over layers

    @cached_property
    def share_TLE(self) -> torch.Tensor:  # noqa: N802
        """Each expert's part in a layer for a token; sums to 1 over experts."""
        return self.weight_TLE / self.weight_TLE.sum(-1, keepdim=True)

    @cached_property
    def share_TE(self) -> torch.Tensor:  # noqa: N802
        """Each expert's part in a token, mean over the layers that choose; sums to 1."""
        return self.share_TLE[:, torch.tensor(self.chooses)].mean(1)

    @cached_property
    def share_LE(self) -> torch.Tensor:  # noqa: N802
        """Each expert's part in a layer, mean over tokens; sums to 1."""
        return self.share_TLE.mean(0)

    @cached_property
    def shares(self) -> dict[str, float]:
        """Each expert's part in the answer by its domain; the values sum to 1, and are 0 for experts not in use."""
        domains = (expert.domain for expert in self.experts)
        return dict(zip(domains, self.share_TE.mean(0).tolist(), strict=True))


@dataclass(frozen=True)
class Step:
    """The last position of each sequence in one forward pass."""

    token_B: torch.Tensor  # noqa: N815 - what was read there
    layers: list[tuple[torch.Tensor, torch.Tensor]]  # numbers of the active experts and their weights, each [B, K]


class Attribution:
    """What the routers chose since the block was opened; `attribute` makes it."""

    def __init__(self, model: Any) -> None:
        fields = ("domain", "title", "licence", "contact")
        self.experts = [Expert(*(str(entry.get(name, "")) for name in fields)) for entry in manifest_experts(model)]
        ends = model.generation_config.eos_token_id
        self._ends = set(ends if isinstance(ends, list) else [ends])
        self._differ = layers_that_choose(model.model.layers)
        self._steps: list[Step] = []

    def answers(self, x_BS: torch.Tensor, prompt: int) -> list[Answer]:
        """One answer for each sequence that `generate` returned last.

        Args:
            x_BS: what `generate` returned: prompts and what it made of them, padded behind the end-of-text token.
            prompt: tokens of the prompt, padding included. Batches are padded on the left.

        Raises:
            InputError: these tokens were not made by the last S - prompt forward passes, one after the other.
        """
        x_BS = x_BS.cpu()
        count = x_BS.shape[1] - prompt
        steps = self._steps[-count:] if prompt > 0 and count > 0 else []
        read_TB = [step.token_B.tolist() for step in steps]
        whole = all(len(step.layers) == len(self._differ) for step in steps)
        if not (steps and whole and read_TB == x_BS[:, prompt - 1 : -1].T.tolist()):
            raise InputError(
                f"sequences of {x_BS.shape[1]} tokens with a prompt of {prompt}: not made by the last forward passes "
                "of this model, one token each. Pass what generate returned, before the model runs again; beams and "
                "assisted generation cannot be attributed."
            )
        weight_BTLE = torch.stack([self._weights(step) for step in steps], 1)
        if not weight_BTLE.isfinite().all():
            raise InputError("the model's router weights are not finite: there are no shares. See flexo-check.")
        made = [self._until_end(row) for row in x_BS[:, prompt:].tolist()]
        return [
            Answer(self.experts, tokens, weight_BTLE[row, : len(tokens)].clone(), self._differ)
            for row, tokens in enumerate(made)
        ]

    def latest(self) -> torch.Tensor:
        """Each expert's part in the token that each sequence is given next, [B, E], float64."""
        weight_BLE = self._weights(self._steps[-1])[:, torch.tensor(self._differ)]
        return (weight_BLE / weight_BLE.sum(-1, keepdim=True)).mean(1)

    def _weights(self, step: Step) -> torch.Tensor:
        """[B, L, E], float64 on the CPU. An expert may come twice, at weight 0, where a sequence has less than K."""
        device = step.token_B.device
        index_BLK, weight_BLK = (
            torch.stack([part.to(device) for part in parts], 1).cpu() for parts in zip(*step.layers, strict=True)
        )
        zeros_BLE = torch.zeros(*index_BLK.shape[:2], len(self.experts), dtype=torch.float64)
        return zeros_BLE.scatter_add_(2, index_BLK, weight_BLK.double())

    def _until_end(self, row: list[int]) -> list[int]:
        places = [place for place, token in enumerate(row, 1) if token in self._ends]
        return row[: places[0]] if places else row

    def _reads(self, x_BT: torch.Tensor) -> None:
        self._steps.append(Step(x_BT[:, -1].clone(), []))

    def _chooses(self, _x_ND: torch.Tensor, index_NK: torch.Tensor, weight_NK: torch.Tensor) -> None:
        if not self._steps:  # the model was given embeddings in place of tokens, which `answers` refuses
            return
        step = self._steps[-1]
        if (batch := len(step.token_B)) != len(index_NK):
            index_NK, weight_NK = (part.view(batch, -1, part.shape[-1])[:, -1] for part in (index_NK, weight_NK))
        # copies, for a compiled model may overwrite its results in the next call
        step.layers.append((index_NK.clone(), weight_NK.detach().clone()))


class Watched(nn.Module):
    """Wraps a part of a model and tells what it is given; a module and no hook, for the reason in `selected_blocks`."""

    def __init__(self, part: nn.Module, tell: Callable[..., None]) -> None:
        super().__init__()
        self.part = part
        uncompiled: Any = torch.compiler.disable  # `tell` runs between the parts of a compiled model
        self.tell = uncompiled(tell)

    def forward(self, *given: torch.Tensor) -> Any:
        self.tell(*given)
        return self.part(*given)

    def __getattr__(self, name: str) -> Any:
        """What the part has, such as `weight`."""
        return super().__getattr__(name) if name == "part" else getattr(self.part, name)


@contextmanager
def attribute(model: PreTrainedModel) -> Iterator[Attribution]:
    """Records which experts each forward pass of `model` uses, until the block ends.

    Goes inside or around `select_experts`. Keeps 12 bytes for each active expert of each layer and generated token.

    Args:
        model: a `FlexOlmoForCausalLM` loaded from a merged folder. It is changed in place, so no other thread may run
            it meanwhile, and it should not be saved from within.

    Raises:
        InputError: the model has no manifest beside it, or is being attributed already.
    """
    record = Attribution(model)
    base: Any = model.model
    if isinstance(base.embed_tokens, Watched):
        raise InputError("this model is being attributed already. Use the record of the block around.")
    blocks = [layer.mlp for layer in base.layers]
    embed, experts = base.embed_tokens, [block.experts for block in blocks]
    try:
        base.embed_tokens = Watched(embed, record._reads)
        for block in blocks:
            block.experts = Watched(block.experts, record._chooses)
        yield record
    finally:
        base.embed_tokens = embed
        for block, part in zip(blocks, experts, strict=True):
            block.experts = part
