"""The normalisation that both variants share: over every trained token of a batch.

Hu et al. 2025, arXiv:2501.03262, eq. 10.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from skyrl_kernel.records import FloatArray

EPSILON = 1e-8
"""Added to the variance, as in SkyRL."""


def whitened(rows: Sequence[NDArray[np.float64]]) -> list[FloatArray]:
    """``(x - mean) / sqrt(var + ε)`` over all numbers of all rows together.

    Args:
        rows: [N] per token row, of its trained tokens only.

    Returns:
        [N] float32 per row: mean 0, sample variance 1. All zeros if all numbers
        are equal, as where there is only one.

    Example:
        >>> [row.round(5).tolist() for row in whitened([np.array([3.0]), np.array([2.0])])]
        [[0.7071...], [-0.7071...]]
    """
    flat = np.concatenate(rows) if rows else np.zeros(0)
    if not flat.size or flat.min() == flat.max():  # the mean's rounding must not become a signal
        return [np.zeros(len(row), np.float32) for row in rows]
    mean, scale = flat.mean(), 1 / np.sqrt(flat.var(ddof=1) + EPSILON)
    return [((row - mean) * scale).astype(np.float32) for row in rows]
