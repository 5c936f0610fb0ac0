"""How a model finds each document, token by token, in one pass: what membership and audits are told from.

S documents; N scored tokens of a batch, V words of the vocabulary.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from transformers import PreTrainedModel

from evals.matrix.measurement_cache import Store
from evals.privacy.attacks.targets import Target
from evals.scoring.measure import LENGTH, Advance, chunks, hidden_states, output_layer
from evals.scoring.sliding_windows import TokenisedText, batches
from flexo.model_config import position_limit

SHARE = 0.2  # of a document's tokens, the least likely ones, that Min-K%++ looks at

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Scores:
    """Of each document, in order."""

    nats: tuple[float, ...]  # to encode all its tokens
    tokens: tuple[int, ...]
    min_k: tuple[float, ...]  # Min-K%++: higher for what the model has seen

    @property
    def loss_S(self) -> Floats:  # noqa: N802 - suffixes are shapes
        """Nats per token."""
        loss_S: Floats = np.array(self.nats) / np.array(self.tokens)
        return loss_S

    def to_dict(self) -> dict[str, Any]:
        return {"nats": self.nats, "tokens": self.tokens, "min_k": self.min_k}

    @classmethod
    def from_dict(cls, value: Mapping[str, Any]) -> Scores:
        return cls(*(tuple(value[name]) for name in ("nats", "tokens", "min_k")))


def scores(target: Target, text: TokenisedText, store: Store[Scores], advance: Advance = lambda _: None) -> Scores:
    """The scores of every document; `store` gives them if it has them, and holds them afterwards."""
    key = {**target.key, "text": text.digest, "length": LENGTH, "how": f"documents, Min-{SHARE:.0%}++"}
    found = store.find(key)
    if found is None:
        with target.enter() as model:
            found = score_documents(model, text, advance)
        store.keep(key, found)
    else:
        advance(text.tokens)
    return found


@torch.inference_mode()
def score_documents(model: PreTrainedModel, text: TokenisedText, advance: Advance = lambda _: None) -> Scores:
    """Scores every document by itself, in the windows of `evals.scoring.sliding_windows`.

    Min-K%++ (Zhang et al. 2024, arXiv 2404.02936): the log-probability of each token, less the mean of those of all
    words under the model's own distribution, in standard deviations of it; then the mean over the lowest of them.
    """
    count, unembed = len(text.documents), output_layer(model)
    length = int(min(LENGTH, position_limit(getattr(model.config, "max_position_embeddings", None))))
    numbered = replace(text, domain_ids=[[n] * len(ids) for n, ids in enumerate(text.documents)])
    logp: list[torch.Tensor] = []
    z: list[torch.Tensor] = []
    document: list[torch.Tensor] = []
    for batch in batches(numbered, length, device=model.device):
        hidden_ND = hidden_states(model, batch.x_BT)[batch.predicts_BT]
        for part in chunks(len(hidden_ND), unembed):
            logp_NV = unembed(hidden_ND[part]).float().log_softmax(-1)
            p_NV = logp_NV.exp()
            mean_N = (p_NV * logp_NV).sum(-1)
            deviation_N = ((p_NV * logp_NV**2).sum(-1) - mean_N**2).clamp(min=1e-12).sqrt()
            own_N = logp_NV.gather(-1, batch.target_N[part, None])[:, 0]
            logp.append(own_N.double().cpu())
            z.append(((own_N - mean_N) / deviation_N).double().cpu())
        document.append(batch.domain_N.cpu())
        advance(len(hidden_ND))
    return _by_document(torch.cat(logp).numpy(), torch.cat(z).numpy(), torch.cat(document).numpy(), count)


def _by_document(logp_N: Floats, z_N: Floats, document_N: npt.NDArray[np.int64], count: int) -> Scores:
    tokens_S = np.bincount(document_N, minlength=count)
    nats_S = np.bincount(document_N, weights=-logp_N, minlength=count)
    order_N = np.lexsort((z_N, document_N))  # a document's tokens side by side, the least likely first
    ends = np.cumsum(tokens_S)
    min_k: Sequence[float] = [
        float(z_N[order_N[end - size : end - size + max(1, round(SHARE * size))]].mean()) if size else 0.0
        for end, size in zip(ends, tokens_S, strict=True)
    ]
    return Scores(tuple(nats_S.tolist()), tuple(tokens_S.tolist()), tuple(min_k))
