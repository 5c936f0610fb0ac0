"""A covariance matrix in a quarter of the bytes that float32 would take: half of it, at half of the precision.

    C_ij = d_i d_j R_ij / 32767     d [D] float32, standard deviations
                                    R [D (D - 1) / 2] int16, correlations below the diagonal, row by row

Correlations lie between -1 and 1, so that whole numbers are off by 2^-16 at most; float16 would be by 2^-12.
Discriminant rows rest on directions of small variance, where such errors count. Entries of C itself span many orders
of magnitude.
"""

from __future__ import annotations

import numpy as np

from merge.tensor_io.float_formats import Values

ONE = 32767  # a correlation of one


def packed(covariance_DD: Values) -> tuple[Values, Values]:
    """d and R as at the head of this module; a dimension without variance correlates with none."""
    deviation_D = np.sqrt(np.maximum(np.diagonal(covariance_DD), 0.0))
    per_D = np.divide(1.0, deviation_D, out=np.zeros_like(deviation_D), where=deviation_D > 0)
    correlation_DD = covariance_DD * per_D * per_D[:, None]
    below = np.tri(len(deviation_D), k=-1, dtype=bool)
    return deviation_D.astype(np.float32), np.rint(np.clip(correlation_DD[below], -1, 1) * ONE).astype(np.int16)


def unpacked(deviation_D: Values, correlation: Values) -> Values:
    """The covariance [D, D] in float64; raises `ValueError` if the two are none, of any width."""
    width = len(deviation_D)
    if correlation.shape != (width * (width - 1) // 2,):
        raise ValueError(f"{len(correlation)} correlations of {width} dimensions")
    if not (np.isfinite(deviation_D) & (deviation_D >= 0)).all():
        raise ValueError("deviations below zero or without end")
    deviation_D, covariance_DD = deviation_D.astype(np.float64), np.zeros((width, width))
    covariance_DD[np.tri(width, k=-1, dtype=bool)] = correlation
    covariance_DD *= deviation_D / ONE
    covariance_DD *= deviation_D[:, None]
    covariance_DD += covariance_DD.T
    np.fill_diagonal(covariance_DD, deviation_D**2)
    return covariance_DD
