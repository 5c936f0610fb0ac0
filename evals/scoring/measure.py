"""Measuring one model on one text: bits per byte, next-token accuracy and routing, in one pass.

from evals.scoring.measure import measure
from evals.scoring.held_out import find_domains, read_texts

model, _ = load_model(Path("model"))
texts = read_texts(find_domains(Path("data/corpora"), ["math"], []), Path("model"), max_bytes=200_000)
found = measure(model, texts["math"], experts=expert_names(model))
found.bits_per_byte, found.accuracy, found.routing.own_mass
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
from torch.nn import functional as F  # noqa: N812 - the name everyone uses
from transformers import PreTrainedModel

from evals.scoring.router_stats import Routing, probed
from evals.scoring.sliding_windows import TokenisedText, batches

LENGTH = 256
LOGITS = 1 << 24  # held at once, whatever the vocabulary

Advance = Callable[[float], None]


@dataclass(frozen=True)
class Measurement:
    """How well a model predicts a text."""

    nats: float  # to encode all tokens
    tokens: int  # scored, every one of the text
    correct: int  # tokens that were the likeliest
    nbytes: int  # of the text in UTF-8
    passes: float = 1.0  # models run for a token
    routing: Routing | None = None

    @property
    def bits_per_byte(self) -> float:
        return self.nats / math.log(2) / self.nbytes

    @property
    def nats_per_token(self) -> float:
        return self.nats / max(1, self.tokens)

    @property
    def accuracy(self) -> float:
        """Share of tokens that were the model's likeliest next token."""
        return self.correct / max(1, self.tokens)

    def with_routing(self, routing: Routing | None) -> Measurement:
        return replace(self, routing=routing)

    def to_dict(self) -> dict[str, Any]:
        """All fields, and the derived figures for readers of the JSON."""
        derived = {name: getattr(self, name) for name in ("bits_per_byte", "nats_per_token", "accuracy")}
        routing = None if self.routing is None else self.routing.to_dict()
        return derived | asdict(replace(self, routing=None)) | {"routing": routing}

    @classmethod
    def from_dict(cls, value: Mapping[str, Any]) -> Measurement:
        """The way back; derived figures are not read."""
        routing = value["routing"]
        plain = {name: value[name] for name in ("nats", "tokens", "correct", "nbytes", "passes")}
        return cls(**plain, routing=None if routing is None else Routing.from_dict(routing))


@torch.inference_mode()
def measure(
    model: PreTrainedModel,
    text: TokenisedText,
    *,
    experts: Sequence[str] | None = None,
    length: int = LENGTH,
    batch_tokens: int | None = None,
    advance: Advance = lambda _tokens: None,
) -> Measurement:
    """Scores every token of a text once, each document by itself.

    Args:
        model: in evaluation mode; its logits must be its output embedding of the last hidden state, no more.
        text: the text to score; at least one byte.
        experts: names of the experts that the model has now, in their order; None numbers them.
        length: tokens in a window, at least 2.
        batch_tokens: tokens per forward pass, padding included; None: a number that suits the device.
        advance: told the tokens scored after each batch.
    """
    unembed = output_layer(model)
    nats, correct, tokens = 0.0, 0, 0
    with probed(model, experts, text.domains) as probe:
        for batch in batches(text, length, batch_tokens, model.device):
            hidden_ND = hidden_states(model, batch.x_BT)[batch.predicts_BT]
            if probe is not None:
                probe.collect(batch.predicts_BT, batch.domain_N)
            target_N = batch.target_N
            for part in chunks(len(target_N), unembed):
                logits_PV = unembed(hidden_ND[part]).float()
                nats += F.cross_entropy(logits_PV, target_N[part], reduction="none").double().sum().item()
                correct += int((logits_PV.argmax(-1) == target_N[part]).sum())
            tokens += len(target_N)
            advance(len(target_N))
        routing = probe.sums.result() if probe is not None and tokens else None
    assert tokens == text.tokens, f"{tokens} tokens scored of {text.tokens}"
    return Measurement(nats, tokens, correct, text.nbytes, routing=routing)


def added(one: Measurement, other: Measurement) -> Measurement:
    """The measurement of both texts together, without routing."""
    tokens = one.tokens + other.tokens
    passes = (one.passes * one.tokens + other.passes * other.tokens) / max(1, tokens)
    return Measurement(one.nats + other.nats, tokens, one.correct + other.correct, one.nbytes + other.nbytes, passes)


def bits_per_byte(model: PreTrainedModel, text: TokenisedText, **options: Any) -> float:
    """Total bits to encode the documents, over their bytes; options are those of `measure`."""
    return measure(model, text, **options).bits_per_byte


def hidden_states(model: PreTrainedModel, x_BT: torch.Tensor) -> torch.Tensor:
    """The input of the output layer, [B, T, D]."""
    position_BT = torch.arange(x_BT.shape[1], device=x_BT.device).expand(x_BT.shape)
    hidden: torch.Tensor = model.base_model(input_ids=x_BT, position_ids=position_BT, use_cache=False).last_hidden_state
    return hidden


def output_layer(model: PreTrainedModel) -> Any:
    whole: Any = model  # transformers leaves the method without types
    return whole.get_output_embeddings()


def chunks(count: int, unembed: Any) -> Iterator[slice]:
    """`count` places in parts whose logits fit into `LOGITS`."""
    size = max(1, LOGITS // unembed.weight.shape[0])
    return (slice(start, start + size) for start in range(0, count, size))
