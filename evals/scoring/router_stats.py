"""Where a router sends text: mass, entropy and choice per layer, gathered in the forward pass that scores the text.

L layers, N tokens, E experts. A token counts at the place that predicts it, so each is counted once. The router of a
merged model has a row of figures per layer; an ensemble, whose weights over models are a router too, has one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from itertools import compress
from statistics import fmean
from typing import Any

import torch
from transformers import PreTrainedModel

from inference.router_health import count_choices, entropies, layers_that_choose

Table = list[list[float]]


@dataclass(frozen=True)
class Routing:
    """Routing of a text. A share or mass is a mean over tokens, from 0 to 1."""

    experts: tuple[str, ...]
    mass: Table  # [L][E] probability before the choice of the top; sums to one over the experts
    heaviest: Table  # [L][E] share of tokens for which the expert has the most mass
    active: Table  # [L][E] share of tokens that the expert is run for
    entropy: list[float]  # [L] mean entropy of a token's probabilities, bits
    own: list[float] | None  # [L] mass on the expert of the token's domain; None if there is none
    agreement: list[float] | None  # [L] share of tokens whose heaviest expert is their domain's
    agreement_overall: float | None  # ... by the mass averaged over the layers that choose
    tokens: int
    own_tokens: int  # tokens whose domain has an expert
    chooses: list[bool]  # [L] whether a layer's experts differ: below model.first_layer they do not

    @property
    def own_mass(self) -> float | None:
        """In-domain router mass, the mean over the layers that choose."""
        return None if self.own is None else fmean(compress(self.own, self.chooses))

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_dict(cls, value: Mapping[str, Any]) -> Routing:
        return cls(**(dict(value) | {"experts": tuple(value["experts"])}))


class RouterSums:
    """Sums over tokens in float64, so that the order of batches hardly matters."""

    def __init__(self, experts: Sequence[str], domains: Sequence[str], chooses: Sequence[bool] = (True,)) -> None:
        """Of a router with a layer for each of `chooses`, see `Routing`; at least one of them is true.

        Args:
            experts: named after domains.
            domains: of the text; `add` names them by their places in this sequence.
            chooses: whether a layer's experts differ.
        """
        self.experts, self.chooses = tuple(experts), list(chooses)
        layers = len(self.chooses)
        own = [self.experts.index(domain) if domain in self.experts else -1 for domain in domains]
        self.own = torch.tensor(own)
        shape = (layers, len(self.experts))
        self.mass_LE, self.heaviest_LE, self.active_LE = (torch.zeros(shape, dtype=torch.float64) for _ in range(3))
        self.entropy_L, self.own_L, self.agree_L = (torch.zeros(layers, dtype=torch.float64) for _ in range(3))
        self.agree = 0.0
        self.tokens = self.own_tokens = 0

    def add(self, p_LNE: Sequence[torch.Tensor], active_LNE: Sequence[torch.Tensor], domain_N: torch.Tensor) -> None:
        """Adds tokens: of each layer probabilities and which experts ran, [N, E]; of each its place in `domains`."""
        own_N = self.own.to(domain_N.device)[domain_N]
        owned = own_N >= 0
        own_O = own_N[owned]
        self.tokens += len(own_N)
        self.own_tokens += len(own_O)
        for n, (p_NE, active_NE) in enumerate(zip(p_LNE, active_LNE, strict=True)):
            p_NE = p_NE.double()
            heaviest_N = p_NE.argmax(-1)
            self.mass_LE[n] += p_NE.sum(0).cpu()
            self.active_LE[n] += active_NE.double().sum(0).cpu()
            self.heaviest_LE[n] += count_choices(heaviest_N, len(self.experts))
            self.entropy_L[n] += entropies(p_NE).sum().cpu()
            self.own_L[n] += p_NE[owned].gather(1, own_O[:, None]).sum().cpu()
            self.agree_L[n] += (heaviest_N[owned] == own_O).sum().cpu()
        whole_NE = torch.stack([p_NE.double() for p_NE in compress(p_LNE, self.chooses)]).mean(0)
        self.agree += float((whole_NE[owned].argmax(-1) == own_O).sum())

    def result(self) -> Routing:
        """Means over the tokens added, at least one."""
        assert self.tokens, "no token was routed"
        return Routing(
            experts=self.experts,
            mass=(self.mass_LE / self.tokens).tolist(),
            heaviest=(self.heaviest_LE / self.tokens).tolist(),
            active=(self.active_LE / self.tokens).tolist(),
            entropy=(self.entropy_L / self.tokens).tolist(),
            own=(self.own_L / self.own_tokens).tolist() if self.own_tokens else None,
            agreement=(self.agree_L / self.own_tokens).tolist() if self.own_tokens else None,
            agreement_overall=self.agree / self.own_tokens if self.own_tokens else None,
            tokens=self.tokens,
            own_tokens=self.own_tokens,
            chooses=self.chooses,
        )


class RouterProbe:
    """Hooks on the gates of a FlexOlmo model; after each forward pass, `collect` adds the routing to `sums`."""

    def __init__(self, gates: list[Any], sums: RouterSums) -> None:
        self.gates, self.sums = gates, sums
        self.seen: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}

    def collect(self, predicts_BT: torch.Tensor, domain_N: torch.Tensor) -> None:
        """Adds the places of the last forward pass that predict a scored token."""
        places = predicts_BT.flatten()
        p, active = [], []
        for n in range(len(self.gates)):
            logits, chosen = self.seen.pop(n)
            p_NE = logits[places].float().softmax(-1)
            p.append(p_NE)
            active.append(torch.zeros_like(p_NE, dtype=torch.bool).scatter_(1, chosen[places], True))
        self.sums.add(p, active, domain_N)

    def see(self, n: int, logits_NE: torch.Tensor, _weight_NK: torch.Tensor, index_NK: torch.Tensor) -> None:
        """What `seeing_gates` tells."""
        self.seen[n] = logits_NE, index_NK


@contextmanager
def seeing_gates(
    gates: Sequence[Any], see: Callable[[int, torch.Tensor, torch.Tensor, torch.Tensor], None]
) -> Iterator[None]:
    """While it lasts, `see` is told what each gate gives: its number, logits [N, E], weights and indices [N, K]."""

    def telling(n: int) -> Callable[..., None]:
        return lambda _gate, _inputs, output: see(n, *output)

    hooks = [gate.register_forward_hook(telling(n)) for n, gate in enumerate(gates)]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


@contextmanager
def probed(
    model: PreTrainedModel, experts: Sequence[str] | None, domains: Sequence[str]
) -> Iterator[RouterProbe | None]:
    """Yields a probe on the routers of `model`, or None if it has none.

    Args:
        model: a FlexOlmo model, or a dense one.
        experts: names of its experts in their order; None numbers them.
        domains: of the text, see `RouterSums`.
    """
    layers = getattr(model.base_model, "layers", ())
    gates = [layer.mlp.gate for layer in layers if hasattr(layer.mlp, "gate")]
    if not gates:
        yield None
        return
    count = gates[0].weight.shape[0]
    names = [f"expert {n}" for n in range(count)] if experts is None else experts
    assert len(names) == count, f"{len(names)} names for {count} experts"
    probe = RouterProbe(gates, RouterSums(names, domains, layers_that_choose(layers)))
    with seeing_gates(gates, probe.see):
        yield probe
