"""Checks router rows before a merge, without running a model: would an expert be chosen for every token?

The norm of a row says little: a row that training starts from a discriminant is hundreds of times longer than the
public one, which is nearly orthogonal to the hidden states. What counts is the margin `m = (r - r_pub).x` on
public text, the router logit of the expert over that of the public one. Its mean and spread follow exactly from the
moments of x that the anchor ships. If m is taken as normal, so does the mass of the expert on public text, its mean
probability when it stands beside the public one alone.

The experts of `make demo` have root mean square margins of 1.5 to 9, and masses of 0.02 to 0.41, over all layers.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from flexo.errors import ExpertFileError
from merge.formats.anchor_folder import BIAS_DIRECTION, Anchor
from merge.formats.architecture import ROUTER_BIAS, ROUTER_WEIGHT
from merge.formats.expert_file import ExpertFile
from merge.planning.base_model import Base
from merge.tensor_io.float_formats import Values, to_float32
from merge.tensor_io.stored_tensor import StoredTensor

# exp(-745) is the smallest number that float64 can hold: beyond, the softmax is exactly 0 or 1 and its gradient exactly
# zero, so that no training leads there.
LARGEST_MARGIN = 1000.0
UNUSUAL_MARGIN = 50.0  # five times the largest of the demo's experts
UNUSUAL_MASS = 0.8  # the published recipe's greediest expert had 0.64 on public text
LOUD = 5.0  # nats; PHATGOOSE gates, which never see public text, have up to 3.7, our experts less than 0 (docs/log.md)
LARGEST_RATIO = 1e6  # of row norms, where the anchor ships no moments; a thousand times the largest of the demo's


@dataclass(frozen=True)
class Margin:
    """An expert's router logit over the public one's, in one layer on public text."""

    mean: float
    deviation: float

    @property
    def rms(self) -> float:
        return math.hypot(self.mean, self.deviation)

    @property
    def loudness(self) -> float:
        """`mean + deviation^2 / 4`, in nats: how much more than any discriminant the expert asks for.

        The row of a linear discriminant, `w = S^-1 d` for means that lie `d` apart and S the mean of both covariances,
        has a mean margin of `-d'S^-1 d / 2` on public text and, as S is at least half of the public covariance, a
        variance of at most `2 d'S^-1 d`: its loudness is 0 at most, whatever the text. A row `k` times as long has `k`
        times the mean and `k^2` times the variance.
        """
        return self.mean + self.deviation**2 / 4

    @property
    def mass(self) -> float:
        """The mean of sigmoid(m) for a normal m, by MacKay's approximation (Neural Computation 4, 1992)."""
        scaled = self.mean / math.sqrt(1 + math.pi / 8 * self.deviation**2)
        return 1 / (1 + math.exp(-scaled)) if scaled > -700 else 0.0


@dataclass(frozen=True)
class Row:
    """An expert's router row in one layer, its bias folded in."""

    norm: float
    public: float  # the public row's norm
    margin: Margin | None  # unknown where the anchor ships no moments


def screen_rows(base: Base, anchor: Anchor | None, experts: Sequence[ExpertFile]) -> list[str]:
    """Warnings about unusual router rows, one line an expert; raises `ExpertFileError` for rows beyond reason.

    Without an anchor that ships moments, a row is judged by its norm alone, compared with the public row's.
    """
    warnings = []
    for expert in experts:
        judged = (_judge(base, anchor, expert, n) for n in range(base.architecture.num_hidden_layers))
        unusual = [text for text in judged if text]
        if unusual:
            more = f", and the like in {len(unusual) - 1} more layers" if len(unusual) > 1 else ""
            warnings.append(f"{expert.path}: {unusual[0]}{more}")
    return warnings


def folded_row(anchor: Anchor | None, expert: ExpertFile, n: int, public_weight: float = 1.0) -> Values:
    """The router row [D] of layer `n` in float32, with its bias folded in (r + b v); only a bias needs the anchor.

    The logarithm of `public_weight` is taken from the bias.
    """
    row_D = expert.values(ROUTER_WEIGHT.format(n=n))
    if not expert.has_bias and public_weight == 1:
        return row_D
    assert anchor is not None, f"{expert.path}: a bias and no anchor to fold it with"
    bias = expert.values(ROUTER_BIAS.format(n=n)) if expert.has_bias else np.zeros(1, np.float32)
    bias = (bias - math.log(public_weight)).astype(np.float32)
    folded_D: Values = row_D + bias * _values(anchor.shared[BIAS_DIRECTION.format(n=n)])
    return folded_D


def margin_of(anchor: Anchor, n: int, row_D: Values) -> Margin | None:
    """The margin of a row over the public one in layer `n`; None if the anchor ships no moments."""
    moments = anchor.moments(n)
    if moments is None:
        return None
    mean_D, covariance_DD = moments
    over_D = row_D.astype(np.float64) - _values(anchor.shared[ROUTER_WEIGHT.format(n=n)])
    return Margin(float(over_D @ mean_D), math.sqrt(max(0.0, float(over_D @ covariance_DD @ over_D))))


def look_at(base: Base, anchor: Anchor | None, expert: ExpertFile, n: int) -> Row:
    """Norm and margin of an expert's row in layer `n`."""
    row_D = folded_row(anchor, expert, n)
    norm, public = (float(np.linalg.norm(row.astype(np.float64))) for row in (row_D, base.rows(n)[0]))
    return Row(norm, public, margin_of(anchor, n, row_D) if anchor else None)


def _judge(base: Base, anchor: Anchor | None, expert: ExpertFile, n: int) -> str | None:
    row = look_at(base, anchor, expert, n)
    margin = row.margin
    if margin is None:
        sane = row.norm <= LARGEST_RATIO * max(row.public, 1e-6)
        size = f"norm {row.norm:.3g}, the public row's is {row.public:.3g}"
    else:
        sane, size = margin.rms <= LARGEST_MARGIN, f"a router margin of {margin.rms:.3g} on public text (rms)"
    if not sane:
        raise ExpertFileError(
            f"{expert.path}: the router row of layer {n} has {size}. The expert would be chosen for every "
            "token or for none, which no training leads to. Do not merge this file."
        )
    if margin is None:
        return None
    if margin.mass > UNUSUAL_MASS:
        return f"layer {n} would have a router mass of {margin.mass:.0%} on public text, beside the public expert alone"
    if margin.loudness > LOUD:
        return (
            f"layer {n} is louder than a router row of any text should be (margin on public text {margin.mean:.1f}, "
            f"deviation {margin.deviation:.1f}) and would take tokens from experts that know them"
        )
    if margin.rms > UNUSUAL_MARGIN:
        return f"layer {n} has {size}, usual are 1 to 10"
    return None


def _values(stored: StoredTensor) -> Values:
    return to_float32(stored.read(), stored.dtype)
