"""Next-token loss without the logits of a whole batch in memory.

For each chunk of positions the logits, the loss and the gradient with respect to the hidden states are computed
together, and the logits are dropped. Backward then only scales what is there: the work is the two matrix products that
any cross-entropy needs (three if the output embedding is trained), and memory does not grow with the vocabulary.

N positions, D hidden size, V vocabulary size.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from flexmix.packing.attention import model_inputs
from flexmix.packing.windows import NO_LABEL

CHUNK_LOGITS = {"cpu": 1 << 22, "cuda": 1 << 27}  # logits at once
LEAST_ROWS = 512  # positions at once: with fewer, reading the output embedding costs more than the products


class NextToken(nn.Module):
    """A causal language model that answers a batch with its loss.

    The head's weight is used outside the head, so a model is sharded through this module, and not by itself.

    Args:
        model: a transformers causal language model; its logits must be its output embedding of the last hidden state.
        z_weight: weight of the mean squared log-normaliser of the vocabulary (PaLM, arXiv 2204.02311, section 5).
    """

    def __init__(self, model: PreTrainedModel, z_weight: float = 0.0) -> None:
        super().__init__()
        self.model, self.z_weight = model, z_weight

    def forward(self, batch: dict[str, torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
        """The loss to minimise, and the mean cross-entropy in nats per token, for logging."""
        inputs = model_inputs(batch, self.model.config._attn_implementation)
        output = self.model.base_model(**inputs, use_cache=False)
        model: Any = self.model  # transformers leaves the method without types
        head_VD = model.get_output_embeddings().weight
        return linear_cross_entropy(output.last_hidden_state, head_VD, batch["labels"], self.z_weight)


def linear_cross_entropy(
    h: torch.Tensor, weight_VD: torch.Tensor, labels: torch.Tensor, z_weight: float = 0.0, rows: int | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    """Cross-entropy of `softmax(h @ weight_VD.T)`, mean over the scored positions.

    Args:
        h: hidden states [..., D].
        weight_VD: the output embedding.
        labels: int64 [...], `NO_LABEL` where a position is not scored.
        z_weight: adds `z_weight * mean(logsumexp ** 2)`.
        rows: positions whose logits are held at once; None picks by device and vocabulary.

    Returns:
        The loss, and the cross-entropy alone, detached. Both in float32.
    """
    scored = labels.flatten() != NO_LABEL
    h_ND, labels_N = h.flatten(0, -2), labels.flatten()
    if not bool(scored.all()):
        h_ND, labels_N = h_ND[scored], labels_N[scored]
    assert len(labels_N), "a batch without a scored position"
    if rows is None:
        rows = chunk_rows(len(weight_VD), len(labels_N), h.device.type)
    loss, cross_entropy = _LinearCrossEntropy.apply(h_ND, weight_VD, labels_N, z_weight, rows)  # type: ignore[no-untyped-call]
    return loss, cross_entropy


def chunk_rows(vocabulary: int, positions: int, device: str = "cuda") -> int:
    """How many of `positions` have their logits in memory at once."""
    limit = CHUNK_LOGITS.get(device, CHUNK_LOGITS["cuda"])
    return min(positions, max(LEAST_ROWS, limit // vocabulary))


class _LinearCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, h_ND: torch.Tensor, weight_VD: torch.Tensor, labels_N: torch.Tensor, z_weight: float, rows: int
    ) -> tuple[torch.Tensor, torch.Tensor]:
        kind, dtype = h_ND.device.type, compute_dtype(h_ND)
        compute_VD = weight_VD.to(dtype)
        need_h, need_weight = ctx.needs_input_grad[:2]
        grad_h_ND = torch.empty_like(h_ND) if need_h else None
        grad_VD = torch.zeros_like(weight_VD, dtype=torch.float32) if need_weight else None
        count = len(labels_N)
        nats = h_ND.new_zeros((), dtype=torch.float64 if kind == "cpu" else torch.float32)
        squares = nats.clone()
        with torch.autocast(kind, enabled=False):
            for first in range(0, count, rows):
                h_nD = h_ND[first : first + rows].to(dtype)
                labels_n1 = labels_N[first : first + rows, None]
                logits_nV = (h_nD @ compute_VD.T).float()
                label_n1 = logits_nV.gather(1, labels_n1)
                highest_n1 = logits_nV.amax(1, keepdim=True)
                p_nV = logits_nV.sub_(highest_n1).exp_()
                total_n1 = p_nV.sum(1, keepdim=True)
                normaliser_n1 = total_n1.log() + highest_n1
                nats += (normaliser_n1 - label_n1).sum()
                squares += normaliser_n1.square().sum()
                if not (need_h or need_weight):
                    continue
                # d loss / d logit = (p (1 + 2 z normaliser) - [label]) / N
                p_nV.mul_((1 + 2 * z_weight * normaliser_n1) / (total_n1 * count))
                p_nV.scatter_add_(1, labels_n1, torch.full_like(label_n1, -1 / count))
                grad_nV = p_nV.to(dtype)
                del logits_nV, p_nV  # the same memory, twice as much as the gradient's in bf16
                if grad_h_ND is not None:
                    grad_h_ND[first : first + rows] = grad_nV @ compute_VD
                if grad_VD is not None:
                    grad_VD += grad_nV.T @ h_nD
        ctx.save_for_backward(grad_h_ND, None if grad_VD is None else grad_VD.to(weight_VD.dtype))
        cross_entropy = (nats / count).float()
        ctx.mark_non_differentiable(cross_entropy)
        return cross_entropy + z_weight * (squares / count).float(), cross_entropy

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor, _cross_entropy: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        grad_h_ND, grad_VD = ctx.saved_tensors
        scaled = [None if part is None else part * grad.to(part.dtype) for part in (grad_h_ND, grad_VD)]
        return *scaled, None, None, None


def compute_dtype(x: torch.Tensor) -> torch.dtype:
    """The dtype of matrix products on `x` here."""
    kind = x.device.type
    return torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else x.dtype
