"""What a domain looks like from inside the anchor: first and second moments of hidden states, gathered in one pass."""

from __future__ import annotations

from dataclasses import dataclass

import torch


@dataclass
class Moments:
    """Running moments of vectors x [D], accumulated in float64 so that the order of batches hardly matters."""

    count: int
    sum_D: torch.Tensor  # noqa: N815 - the suffix is the shape
    outer_DD: torch.Tensor  # noqa: N815 - likewise

    @classmethod
    def empty(cls, width: int) -> Moments:
        return cls(0, torch.zeros(width, dtype=torch.float64), torch.zeros(width, width, dtype=torch.float64))

    def update(self, x_ND: torch.Tensor) -> None:
        """Adds N vectors."""
        x_ND = x_ND.detach().to("cpu", torch.float64)
        self.count += x_ND.shape[0]
        self.sum_D += x_ND.sum(0)
        self.outer_DD += x_ND.T @ x_ND

    @property
    def mean(self) -> torch.Tensor:
        """E[x], [D]: the domain embedding of a layer."""
        return self.sum_D / self.count

    @property
    def second(self) -> torch.Tensor:
        """E[x x^T], [D, D], not centred."""
        return self.outer_DD / self.count

    @property
    def covariance(self) -> torch.Tensor:
        """E[(x - mean)(x - mean)^T], [D, D]."""
        return self.second - torch.outer(self.mean, self.mean)

    @classmethod
    def of(cls, mean_D: torch.Tensor, second_DD: torch.Tensor) -> Moments:
        """From stored moments, as if of one vector."""
        return cls(1, mean_D.double(), second_DD.double())
