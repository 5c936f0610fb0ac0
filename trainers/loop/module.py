"""The Lightning module that trains a language model on packed batches; those for experts and routers build on it."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import lightning as L  # noqa: N812 - the name everyone uses
import torch
from torch import nn
from transformers import PreTrainedModel

from flexmix.packing.windows import NO_LABEL
from trainers.distributed import mean_over_devices, shard, whole
from trainers.loop.next_token_loss import NextToken
from trainers.loop.optimizer import OptimizerOptions

Batch = dict[str, torch.Tensor]


@dataclass(frozen=True)
class LossOptions:
    """Weights of the terms beside the cross-entropy."""

    lm_z: float = 1e-5  # mean squared log-normaliser of the vocabulary
    router_z: float = 1e-3  # the same for the router, mean over layers
    own_vs_public: float = 0.0  # logistic loss of the router margin in telling own from public text, mean over layers
    stay: float = 0.0  # KL divergence of a merged model's routing from what it was before training, mean over layers
    own_domain: float = 0.0  # cross-entropy of that routing against whose text a window is, mean over layers
    balance: float = 0.0  # load balancing of a whole mixture of experts


class LitAnchor(L.LightningModule):
    """Trains every parameter of a causal language model on packed batches.

    Args:
        model: a transformers causal language model.
        optimizer, loss: options.
        steps: of the whole run; the schedule ends there.
        held_out_names: the validation sets, for the names of the metrics.
        fill: fills the parameters of a submodule that are on the meta device, once its sharding is known.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        optimizer: OptimizerOptions,
        loss: LossOptions,
        steps: int,
        held_out_names: Iterable[str],
        fill: Callable[[nn.Module], None] | None = None,
    ) -> None:
        super().__init__()
        self.next_token = NextToken(model.train(), loss.lm_z)
        self.options, self.weights, self.steps = optimizer, loss, steps
        self.held_out_names, self.fill = list(held_out_names), fill

    @property
    def model(self) -> PreTrainedModel:
        return self.next_token.model

    def trained(self) -> Iterable[tuple[str, nn.Parameter]]:
        """Name and parameter of all that is trained."""
        yield from self.model.named_parameters()

    def configure_model(self) -> None:
        """Spreads the model over the devices, if the strategy has told us which."""
        if self.device_mesh is not None:
            shard(self.next_token, self.model.model.layers, self.device_mesh["data_parallel"], self.fill)

    def configure_optimizers(self) -> Any:
        optimizer = self.options.build(self.trained())
        scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, self.options.factor(self.steps))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    def training_step(self, batch: Batch, _index: int) -> torch.Tensor:
        total, loss = self.next_token(batch)
        terms = self._terms(batch)
        logged = {"loss": loss, "lm_z": total.detach() - loss} | {name: term.detach() for name, term in terms.items()}
        logged |= self._logged(batch)
        values = mean_over_devices(torch.stack(list(logged.values())))
        self.log_dict({f"train/{name}": value for name, value in zip(logged, values, strict=True)})
        return torch.stack([total, *terms.values()]).sum()

    def validation_step(self, batch: Batch, _index: int, dataloader_idx: int = 0) -> None:
        _, loss = self.next_token(batch)
        self._log_held_out(f"{self.held_out_names[dataloader_idx]}/loss", loss, len(batch["labels"]))

    def configure_gradient_clipping(
        self, _optimizer: Any, gradient_clip_val: float | None = None, gradient_clip_algorithm: str | None = None
    ) -> None:
        """Clips the global norm and logs it. Lightning itself, wary of fp16's scaling, refuses fused optimisers."""
        limit = float("inf") if gradient_clip_val is None else gradient_clip_val
        norm = nn.utils.clip_grad_norm_([parameter for _, parameter in self.trained()], limit)
        self.log("train/grad_norm", whole(norm.detach()))

    def _terms(self, _batch: Batch) -> dict[str, torch.Tensor]:
        """Further terms of the loss, weighted."""
        return {}

    def _logged(self, _batch: Batch) -> dict[str, torch.Tensor]:
        """Further values for the log."""
        return {}

    def _log_held_out(self, name: str, value: torch.Tensor, batch_size: int) -> None:
        self.log(name, value, on_step=False, on_epoch=True, batch_size=batch_size, add_dataloader_idx=False)


def labelled_mean(x: torch.Tensor, batch: Batch) -> torch.Tensor:
    """The mean of x [..., B, T] over the positions that have a label; padding has none."""
    labelled_BT = batch["labels"] != NO_LABEL
    return (x * labelled_BT).sum() / (labelled_BT.sum() * (x.numel() // labelled_BT.numel()))
