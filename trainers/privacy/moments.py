"""Where an owner's router rows start under privacy: the mean of the hidden states, each unit's part of it bounded.

The covariance is that of public text. For own text it would be D^2 numbers a layer, under whose noise nothing is left;
a linear discriminant needs one covariance for both classes anyway. In the coordinates in which public states have
mean 0 and covariance 1, a unit's mean state, all layers together, is clipped to C and noise of z C is added to the sum.

U units, L layers, D hidden size.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

import torch
from transformers import PreTrainedModel

from flexmix.domains.moments import Moments
from flexmix.packing.windows import NO_LABEL, Batch
from trainers.router.row_init import seeing_router_inputs

RIDGE = 1e-3  # of each dimension's own variance


class Whitening:
    """To the coordinates of public text and back, layer by layer."""

    def __init__(self, public: Sequence[Moments]) -> None:
        self.public = public
        self.factors = []
        for part in public:
            covariance_DD = part.covariance
            ridge_D = RIDGE * covariance_DD.diagonal().clamp(min=float(covariance_DD.diagonal().mean()) * RIDGE)
            self.factors.append(torch.linalg.cholesky(covariance_DD + ridge_D.diag()))

    def there(self, mean_LD: torch.Tensor) -> torch.Tensor:
        parts = zip(mean_LD, self.public, self.factors, strict=True)
        return torch.stack(
            [torch.linalg.solve_triangular(f, (x - p.mean)[:, None], upper=False)[:, 0] for x, p, f in parts]
        )

    def back(self, z_LD: torch.Tensor) -> list[Moments]:
        parts = zip(z_LD, self.public, self.factors, strict=True)
        means = [f @ z + p.mean for z, p, f in parts]
        return [Moments.of_covariance(m, p.covariance) for m, p in zip(means, self.public, strict=True)]


def private_moments(
    units: Iterable[torch.Tensor], white: Whitening, clip: float, expected: float, noise_LD: torch.Tensor
) -> list[Moments]:
    """The moments of own text that rows start from: a noised mean, and the covariance of public text.

    Args:
        units: of each unit that was drawn, the mean state of every layer [L, D].
        white: the coordinates of public text.
        clip: C, in the coordinates of public text; from public text alone.
        expected: how many units are drawn on average.
        noise_LD: deviation z C.
    """
    total_LD = noise_LD.double()
    for mean_LD in units:
        z_LD = white.there(mean_LD.double())
        total_LD = total_LD + z_LD * (clip / max(float(z_LD.norm()), clip))
    return white.back(total_LD / expected)


def usual_norm(units: Iterable[torch.Tensor], white: Whitening) -> float:
    """The median over units of public text of the norm that `private_moments` clips."""
    return float(torch.stack([white.there(mean_LD.double()).norm() for mean_LD in units]).median())


@torch.no_grad()
def unit_means(
    model: PreTrainedModel, batches: Iterable[Batch], advance: Callable[[float], None]
) -> Iterable[torch.Tensor]:
    """The mean router input of every layer of an anchor, over the labelled positions of each unit's windows, [L, D].

    A batch has all windows of its units; `unit` [B] numbers them in order.
    """
    sums: dict[int, torch.Tensor] = {}
    batch: Batch = {}

    def see(n: int, x_BTD: torch.Tensor) -> None:
        sums[n] = (x_BTD * (batch["labels"] != NO_LABEL)[..., None]).sum(1)

    with seeing_router_inputs(model, see) as read:
        for batch in batches:
            read(batch)
            sums_LBD = torch.stack([sums[n] for n in sorted(sums)])
            labelled_B = (batch["labels"] != NO_LABEL).sum(1)
            for unit in sorted(set(batch["unit"].tolist())):
                mine = batch["unit"] == unit
                yield sums_LBD[:, mine].sum(1) / labelled_B[mine].sum()
            advance(batch["input_ids"].numel())
