"""Training a FlexOlmo model: its router rows alone, or everything.

B batch, T positions, N = B T, E experts, D hidden size, L layers.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from flexmix.packing.windows import Batch
from trainers.loop.module import LitAnchor, LossOptions, labelled_mean
from trainers.loop.optimizer import OptimizerOptions


class LitRouted(LitAnchor):
    """Trains what is not frozen of a FlexOlmo model.

    Args:
        model: a `FlexOlmoForCausalLM`, perhaps from `train_rows_only`.
        domains: names of the experts by index; a held-out set named like one logs that expert's router mass.
        sources: the name of the expert that each source of text belongs to; needed for `loss.own_domain`.

    Checkpoints hold only what is trained.
    """

    strict_loading = False

    def __init__(
        self,
        model: PreTrainedModel,
        optimizer: OptimizerOptions,
        loss: LossOptions,
        steps: int,
        held_out_names: Iterable[str],
        domains: list[str],
        sources: Sequence[str] = (),
    ) -> None:
        super().__init__(model, optimizer, loss, steps, held_out_names)
        self.domains = domains
        self.source_experts = [domains.index(name) for name in sources]
        self._seen: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}  # layer -> states and logits of the last pass
        for n, layer in enumerate(model.model.layers):
            layer.mlp.gate.register_forward_hook(self._keep(n))

    def trained(self) -> Iterable[tuple[str, nn.Parameter]]:
        return ((name, part) for name, part in self.model.named_parameters() if part.requires_grad)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        kept = {f"next_token.model.{name}" for name, _ in self.trained()}
        checkpoint["state_dict"] = {name: value for name, value in checkpoint["state_dict"].items() if name in kept}

    def validation_step(self, batch: Batch, index: int, dataloader_idx: int = 0) -> None:
        super().validation_step(batch, index, dataloader_idx)
        name, rows = self.held_out_names[dataloader_idx], len(batch["labels"])
        log_p_LNE = self._logits().log_softmax(-1)
        entropy = -(log_p_LNE.exp() * log_p_LNE).sum(-1).mean() / math.log(2)
        self._log_held_out(f"{name}/router_entropy", entropy, rows)
        if name in self.domains:
            self._log_held_out(f"{name}/router_mass", log_p_LNE[..., self.domains.index(name)].exp().mean(), rows)

    def _keep(self, n: int) -> Any:
        def hook(_gate: nn.Module, inputs: tuple[torch.Tensor], output: tuple[torch.Tensor, ...]) -> None:
            self._seen[n] = inputs[0].detach().flatten(0, -2), output[0].float()

        return hook

    def _logits(self) -> torch.Tensor:
        return torch.stack([logits for _, (_, logits) in sorted(self._seen.items())])

    def _terms(self, batch: Batch) -> dict[str, torch.Tensor]:
        logits_LNE = self._logits()
        rows = batch["labels"].shape

        def mean(x_LN: torch.Tensor) -> torch.Tensor:
            return labelled_mean(x_LN.view(-1, *rows), batch)

        terms = {"router_z": self.weights.router_z * mean(logits_LNE.logsumexp(-1).square())}
        if self.weights.stay:
            terms["stay"] = self.weights.stay * mean(self._moved(logits_LNE))
        if self.weights.own_domain:
            source_N = batch["source"].repeat_interleave(rows[1])
            terms["own_domain"] = self.weights.own_domain * mean(self._missed(logits_LNE, source_N))
        if self.weights.balance:
            terms["balance"] = self.weights.balance * balance_loss(logits_LNE, self.model.config.num_experts_per_tok)
        return terms

    def _missed(self, logits_LNE: torch.Tensor, source_N: torch.Tensor) -> torch.Tensor:
        """Cross-entropy of the routing against the expert whose text each position is, [L, N] in nats.

        Only experts that have text here take part: of another one, this text could say only where it is wrong.
        """
        log_p_LNS = logits_LNE[..., self.source_experts].log_softmax(-1)
        return -log_p_LNS.gather(-1, source_N.expand(len(log_p_LNS), -1)[..., None])[..., 0]

    def _moved(self, logits_LNE: torch.Tensor) -> torch.Tensor:
        """KL divergence of the routing from what the starting rows make of the same states, [L, N] in nats."""
        gates = [layer.mlp.gate for layer in self.model.model.layers]
        before = torch.stack([gate.logits_at_start(self._seen[n][0]) for n, gate in enumerate(gates)]).log_softmax(-1)
        return (before.exp() * (before - logits_LNE.log_softmax(-1))).sum(-1)


def balance_loss(logits_LNE: torch.Tensor, top_k: int) -> torch.Tensor:
    """The load-balancing loss of Switch Transformer (arXiv 2101.03961, equations 4 to 6), mean over layers.

    1 where all experts get the same tokens and mass, for one active expert; `top_k` in general.
    """
    p_LNE = logits_LNE.softmax(-1)
    chosen_LNE = torch.zeros_like(p_LNE).scatter_(-1, p_LNE.topk(top_k).indices, 1.0)
    return p_LNE.shape[-1] * (chosen_LNE.mean(1) * p_LNE.mean(1)).sum(-1).mean()
