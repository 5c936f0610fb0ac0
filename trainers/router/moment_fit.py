"""Router rows of a merged model from the moments of every domain: no text is read and no model is run.

Each owner measures the mean and the second moments of what the anchor's routers see on own text (`flexo-embed`); those
of public text come with the anchor. Taken as Gaussians, they say how likely a router input x is under each domain, and
the rows are fitted to tell samples of them apart:

    W = argmin  mean_d E_{x ~ N(m_d, S_d)} [-log softmax(W x)_d] + ridge |W|^2,     per layer

a multinomial logistic regression without an intercept, for FlexOlmo's gate has none. Every domain counts the same, but
public text may count for several: on public text the experts of owners cost more than the public one does elsewhere.
A row that its owner trained only has to tell its domain from public text. Here the statistics of all owners meet, so
rows also learn what separates the text of two owners.

D hidden size, E experts, K samples of each.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping

import torch
from torch import nn

from flexmix.domains.moments import Moments


def composed_rows(
    domains: Mapping[str, Moments], *, samples: int, public_weight: float = 1.0, ridge: float = 1e-5, steps: int = 100
) -> torch.Tensor:
    """The router [E, D] of one layer, float32, one row per domain in the order given.

    Args:
        domains: name -> moments of the router input on its text. Draws follow from name and moments alone, so that the
            rows are the same whoever else was once among the domains.
        samples: K, at least a few times D: fewer, and the rows learn the draws.
        public_weight: how many domains the one named `public` counts for.
        ridge: on the squares of the weights, of inputs whose dimensions are scaled to mean square one each.
        steps: of L-BFGS, at most.
    """
    x_EKD = torch.stack([_draw(name, moments, samples) for name, moments in domains.items()])
    size_D = x_EKD.pow(2).mean((0, 1)).sqrt()
    size_D = size_D.clamp(min=1e-6 * size_D.max())  # dimensions that hold nothing
    x_ND = (x_EKD / size_D).flatten(0, 1).float()
    domain_N = torch.arange(len(domains)).repeat_interleave(samples)
    counts_E = torch.tensor([public_weight if name == "public" else 1.0 for name in domains])
    weight_ED = torch.zeros(len(domains), x_ND.shape[1], requires_grad=True)
    optimizer = torch.optim.LBFGS([weight_ED], max_iter=steps, history_size=10, line_search_fn="strong_wolfe")

    def loss() -> torch.Tensor:
        optimizer.zero_grad()
        value = nn.functional.cross_entropy(x_ND @ weight_ED.T, domain_N, counts_E) + ridge * weight_ED.pow(2).sum()
        value.backward()  # type: ignore[no-untyped-call]
        return value

    optimizer.step(loss)  # type: ignore[no-untyped-call]
    return weight_ED.detach() / size_D.float()


def _draw(name: str, moments: Moments, samples: int) -> torch.Tensor:
    """Samples [K, D] of a Gaussian, float64; directions without variance stay without."""
    seed = int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "little")
    values_D, vectors_DD = torch.linalg.eigh(moments.covariance)
    root_DD = vectors_DD * values_D.clamp(min=0).sqrt()
    draw = torch.Generator().manual_seed(seed)
    noise_KD = torch.randn(samples, len(values_D), generator=draw, dtype=torch.float64)
    samples_KD: torch.Tensor = moments.mean + noise_KD @ root_DD.T
    return samples_KD
