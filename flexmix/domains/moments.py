"""What a domain looks like from inside the anchor: first and second moments of hidden states, gathered in one pass."""

from __future__ import annotations

from dataclasses import dataclass

import torch


@dataclass
class Moments:
    """Running moments of vectors x [D].

    A batch is multiplied in float32 on its own device, about a point near the mean, so that nothing is lost where the
    mean is large; sums of batches are in float64 on the CPU, so that their order hardly matters.
    """

    count: int
    about_D: torch.Tensor  # noqa: N815 - the suffix is the shape; the mean of the first batch
    sum_D: torch.Tensor  # noqa: N815 - likewise; of x - about
    outer_DD: torch.Tensor  # noqa: N815 - likewise; of (x - about)(x - about)^T

    @classmethod
    def empty(cls, width: int) -> Moments:
        zero_D = torch.zeros(width, dtype=torch.float64)
        return cls(0, zero_D, zero_D.clone(), torch.zeros(width, width, dtype=torch.float64))

    def update(self, x_ND: torch.Tensor) -> None:
        """Adds N vectors."""
        x_ND = x_ND.detach().float()
        if not len(x_ND):
            return
        if not self.count:
            self.about_D = x_ND.mean(0).to("cpu", torch.float64)
        x_ND = x_ND - self.about_D.to(x_ND)
        self.count += len(x_ND)
        self.sum_D += x_ND.sum(0).to("cpu", torch.float64)
        self.outer_DD += (x_ND.T @ x_ND).to("cpu", torch.float64)

    @property
    def mean(self) -> torch.Tensor:
        """E[x], [D]: the domain embedding of a layer."""
        return self.about_D + self.sum_D / self.count

    @property
    def covariance(self) -> torch.Tensor:
        """E[(x - mean)(x - mean)^T], [D, D]."""
        off_D = self.sum_D / self.count
        return self.outer_DD / self.count - torch.outer(off_D, off_D)

    @property
    def second(self) -> torch.Tensor:
        """E[x x^T], [D, D], not centred."""
        return self.covariance + torch.outer(self.mean, self.mean)

    @classmethod
    def of(cls, mean_D: torch.Tensor, second_DD: torch.Tensor) -> Moments:
        """From a stored mean and E[x x^T], as if of one vector."""
        return cls.of_covariance(mean_D, second_DD.double() - torch.outer(mean_D.double(), mean_D.double()))

    @classmethod
    def of_covariance(cls, mean_D: torch.Tensor, covariance_DD: torch.Tensor) -> Moments:
        """From a stored mean and covariance, as if of one vector."""
        mean_D = mean_D.double()
        return cls(1, mean_D, torch.zeros_like(mean_D), covariance_DD.double())
