"""What the layers read in a pass: who may use what. And what they write: which experts made which token.

Buffers are made once and changed in place before each pass, as captured and compiled passes need it.

N tokens of a pass, R requests in it, E experts, K active ones, S tokens that are predicted from.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from flexo_vllm import SETTING
from flexo_vllm.routing import route


@dataclass(frozen=True)
class Plan:
    """The requests of a pass in the order of their tokens."""

    allowed: Sequence[Sequence[bool]]  # for each, the experts that it may use
    counts: Sequence[int]  # tokens of each
    drawing: Sequence[tuple[str, int]]  # those that get a token, and the place in the pass that it is predicted from


class Rows:
    """One for each worker.

    Args:
        setting: `experts`, their number, and `counted`, for each layer whether it counts in shares.
        tokens: of a pass, at most.
        device: of the model.
    """

    def __init__(self, setting: Any, tokens: int, device: torch.device) -> None:
        experts, self.counted = int(setting["experts"]), [bool(counts) for counts in setting["counted"]]
        self.public = [True] + [False] * (experts - 1)
        self._public_1E = torch.tensor([self.public], device=device)
        self.allowed_NE = self._public_1E.repeat(tokens, 1)
        self._share_NE = torch.zeros(
            tokens, experts, dtype=torch.float32, device=device
        )  # vLLM's default is the model's
        self._drawing: list[str] = []
        self._places_S = torch.zeros(0, dtype=torch.long, device=device)
        self._told: list[tuple[str, list[float]]] = []

    def allowed(self, params: Any) -> list[bool]:
        """A row of who may use what. What is not wholly understood gets the public expert alone, and stops nobody."""
        given = (getattr(params, "extra_args", None) or {}).get(SETTING)
        if not isinstance(given, list) or len(given) != len(self.public) or True not in given:
            return self.public
        return given if all(type(may) is bool for may in given) else self.public

    def begin(self, plan: Plan) -> None:
        """Before a pass. Rows beyond its tokens, which pad it, get the public expert alone."""
        device = self.allowed_NE.device
        rows_RE, counts_R = torch.tensor(plan.allowed), torch.tensor(plan.counts)
        rows_NE = rows_RE.repeat_interleave(counts_R, 0)
        self.allowed_NE[:] = self._public_1E
        self.allowed_NE[: len(rows_NE)] = rows_NE.to(device)
        self._share_NE.zero_()
        self._drawing = [request for request, _ in plan.drawing]
        self._places_S = torch.tensor([place for _, place in plan.drawing], dtype=torch.long, device=device)

    def end(self) -> None:
        """After a pass. The next one, unless `begin` prepares it, uses the public expert alone."""
        if self._drawing:
            share_SE = self._share_NE[self._places_S].double() / sum(self.counted)
            self._told += zip(self._drawing, share_SE.tolist(), strict=True)
        self._drawing = []
        self.allowed_NE[:] = self._public_1E

    def take(self) -> list[tuple[str, list[float]]]:
        """Requests and each expert's share in their next token, in the order of the tokens; each is told once."""
        told, self._told = self._told, []
        return told

    def route(
        self, gating_output: torch.Tensor, topk: int, renormalize: bool, counts: bool
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Weights and numbers of each token's experts, [N, K]; adds a layer that `counts` to the shares."""
        n = len(gating_output)
        weight_NK, index_NK = route(gating_output, self.allowed_NE[:n], topk, renormalize)
        if counts:
            self._share_NE[:n].scatter_add_(1, index_NK, weight_NK / weight_NK.sum(-1, keepdim=True))
        return weight_NK, index_NK.to(torch.int32)
