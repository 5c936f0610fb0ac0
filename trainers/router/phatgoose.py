"""Gates in the style of PHATGOOSE (arXiv 2402.05859, section 3): trained after the expert, on own text alone.

There a module's output is mixed in with weight sigmoid(v.x), v starting at zero and all else frozen. Gates of several
owners then meet as `softmax(v^.x^ / sqrt(D))`, with v^ and x^ standardised: mean 0 and standard deviation 1 over their
entries. In a pair that weight is the expert's share, with v = r - r_pub.

A FlexOlmo gate cannot standardise x. As the entries of v^ add up to zero, the mean of x drops out exactly; what is left
of x^ is a division by the standard deviation s(x) of the entries of x. Its root mean square over public text takes its
place, so the only difference is how s(x) varies from token to token. The public expert, which has no gate, gets 0.

    r = r_pub + v^ / (sqrt(D) s),   s^2 = E[|x|^2 - (1.x)^2 / D] / D
"""

from __future__ import annotations

import torch

from flexo.errors import InputError
from merge.formats.anchor_folder import Anchor
from trainers.router.row_init import public_moments

STANDARDISE = "model.standardise=true"


def standardised_row(anchor: Anchor, n: int, row_D: torch.Tensor) -> torch.Tensor:
    """The row [D] that ships for the trained row of layer `n`, in float32.

    Raises `InputError` if the anchor ships no public moments, or the gate has not moved from zero.
    """
    second_DD, public_D = public_moments(anchor, n, STANDARDISE).second, anchor.public_row(n).double()
    width = len(public_D)
    v_D = row_D.double() - public_D
    spread = v_D.std(correction=0)
    if not spread > 0:
        raise InputError(f"layer {n}: the gate has not moved from zero. Train on more tokens (data.tokens).")
    s = ((second_DD.trace() - second_DD.sum() / width) / width).sqrt()
    row: torch.Tensor = public_D + (v_D - v_D.mean()) / spread / (width**0.5 * s)
    return row.float()
