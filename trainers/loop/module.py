"""The Lightning module that trains a language model on packed batches; those for experts and routers build on it."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import lightning as L  # noqa: N812 - the name everyone uses
import torch
from torch import nn
from transformers import PreTrainedModel

from flexmix.packing.windows import NO_LABEL
from trainers.distributed import mean_over_devices, shard, whole
from trainers.loop.finite import NotFiniteError, named_documents, not_finite_gradient, where_it_arose
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
        self._parts: list[tuple[Batch, torch.Tensor]] = []  # of this step: what was read, and its loss on all devices

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
        self._parts.append((batch, values[: 2 + len(terms)].sum()))
        self.log_dict({f"train/{name}": value for name, value in zip(logged, values, strict=True)})
        return torch.stack([total, *terms.values()]).sum()

    def validation_step(self, batch: Batch, _index: int, dataloader_idx: int = 0) -> None:
        _, loss = self.next_token(batch)
        self._log_held_out(f"{self.held_out_names[dataloader_idx]}/loss", loss, len(batch["labels"]))

    def configure_gradient_clipping(
        self, _optimizer: Any, gradient_clip_val: float | None = None, gradient_clip_algorithm: str | None = None
    ) -> None:
        """Clips the global norm and logs it. Lightning itself, wary of fp16's scaling, refuses fused optimisers.

        Raises `NotFiniteError` before the step is taken if its loss or its gradient is not finite.
        """
        parameters = [parameter for _, parameter in self.trained()]
        norm = nn.utils.get_total_norm([part.grad for part in parameters if part.grad is not None])
        parts, self._parts = self._parts, []
        loss, whole_norm = torch.stack([loss for _, loss in parts]).sum(), whole(norm.detach())
        if not bool((loss + whole_norm).isfinite()):  # the one moment of a step in which a GPU is waited for
            raise NotFiniteError(self._said_of([batch for batch, _ in parts], float(loss), float(whole_norm)))
        nn.utils.clip_grads_with_norm_(parameters, gradient_clip_val or float("inf"), norm)
        self.log("train/grad_norm", whole_norm)

    def _terms(self, _batch: Batch) -> dict[str, torch.Tensor]:
        """Further terms of the loss, weighted."""
        return {}

    def _logged(self, _batch: Batch) -> dict[str, torch.Tensor]:
        """Further values for the log."""
        return {}

    def _said_of(self, batches: list[Batch], loss: float, norm: float) -> str:
        """What to say of a step whose loss or gradient is not finite: where that began."""
        trainer: Any = self.trainer
        loader = trainer.datamodule.train_dataloader()
        windows = [loader.windows(trainer.global_step, part) for part in range(len(batches))]
        with trainer.precision_plugin.forward_context():
            where = where_it_arose(self.next_token, batches, windows)
        if not where and math.isfinite(loss):
            read = named_documents([window for part in windows for window in part])
            where = f"{not_finite_gradient(self.trained())}, on {read}"
        elif not where:
            where = "a term of the loss beside the cross-entropy" if trainer.world_size == 1 else "on another device"
        return f"step {trainer.global_step + 1}: loss {loss:g}, gradient norm {norm:g}. First: {where}."

    def _log_held_out(self, name: str, value: torch.Tensor, batch_size: int) -> None:
        self.log(name, value, on_step=False, on_epoch=True, batch_size=batch_size, add_dataloader_idx=False)


def labelled_mean(x: torch.Tensor, batch: Batch) -> torch.Tensor:
    """The mean of x [..., B, T] over the positions that have a label; padding has none."""
    labelled_BT = batch["labels"] != NO_LABEL
    return (x * labelled_BT).sum() / (labelled_BT.sum() * (x.numel() // labelled_BT.numel()))
