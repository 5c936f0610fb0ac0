"""The Lightning module that trains one expert and its router row against a frozen anchor."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F  # noqa: N812 - the name everyone uses

from trainers.expert.paired import router_logits, trainable_parameters
from trainers.loop.module import Batch, LitAnchor, labelled_mean


class LitExpert(LitAnchor):
    """Trains one expert and its router row; `model` is an anchor turned into pairs by `paired.pair`.

    Checkpoints hold only what is trained; the rest comes from the anchor.
    """

    strict_loading = False

    def trained(self) -> Iterable[tuple[str, nn.Parameter]]:
        return trainable_parameters(self.model)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        kept = {f"next_token.model.{name}" for name, _ in self.trained()}
        checkpoint["state_dict"] = {name: value for name, value in checkpoint["state_dict"].items() if name in kept}

    def validation_step(self, batch: Batch, index: int, dataloader_idx: int = 0) -> None:
        super().validation_step(batch, index, dataloader_idx)
        name, rows = self.held_out_names[dataloader_idx], len(batch["labels"])
        mass_L, entropy_L = (part.flatten(1).mean(1) for part in mass_and_entropy(router_logits(self.model)))
        self._log_held_out(f"{name}/router_mass", mass_L.mean(), rows)
        self._log_held_out(f"{name}/router_entropy", entropy_L.mean(), rows)
        for n, (mass, entropy) in enumerate(zip(mass_L, entropy_L, strict=True)):
            self._log_held_out(f"{name}/router_mass/layer_{n}", mass, rows)
            self._log_held_out(f"{name}/router_entropy/layer_{n}", entropy, rows)

    def _logged(self, batch: Batch) -> dict[str, torch.Tensor]:
        mass_LBT, entropy_LBT = mass_and_entropy(router_logits(self.model).detach())
        return {
            "router_mass": labelled_mean(mass_LBT, batch), "router_entropy": labelled_mean(entropy_LBT, batch)
        }  # fmt: skip

    def _terms(self, batch: Batch) -> dict[str, torch.Tensor]:
        logits_LBT2 = router_logits(self.model)
        terms = {"router_z": self.weights.router_z * labelled_mean(logits_LBT2.logsumexp(-1).square(), batch)}
        if self.weights.own_vs_public:
            loss_LBT = own_vs_public_loss(logits_LBT2[..., 1] - logits_LBT2[..., 0], batch["own"], batch["balance"])
            terms["own_vs_public"] = self.weights.own_vs_public * labelled_mean(loss_LBT, batch)
        return terms


def mass_and_entropy(logits_LBT2: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The expert's share at each position, and the entropy of the choice in bits, both [L, B, T]."""
    log_p_LBT2 = logits_LBT2.log_softmax(-1)
    p_LBT2 = log_p_LBT2.exp()
    return p_LBT2[..., 1], -(p_LBT2 * log_p_LBT2).sum(-1) / math.log(2)


def own_vs_public_loss(margin_LBT: torch.Tensor, own_B: torch.Tensor, balance_B: torch.Tensor) -> torch.Tensor:
    """Logistic loss of the router margin at every position, weighted by row [L, B, T].

    With weights under which own and public rows count the same, the margin of the least mean loss is the log density
    ratio of own to public text, whatever the mixture in training.
    """
    sign_B = torch.where(own_B, -1.0, 1.0)
    return balance_B[:, None] * F.softplus(sign_B[:, None] * margin_LBT)
