"""Means over tokens first, then over trajectories or prompts.

``sequence_mean`` is the loss of GRPO's paper, Shao et al. 2024,
arXiv:2402.03300, eq. 3. ``prompt_mean`` averages over a prompt's tokens, all its
trajectories together.
"""

from collections.abc import Sequence

import numpy as np

from skyrl_kernel.hookspecs import hookimpl
from skyrl_kernel.protocols import Reduction
from skyrl_kernel.records import BoolArray, FloatArray


@hookimpl
def make_reduction(name: str) -> Reduction | None:
    """The reductions of ``trainer.algorithm.loss_reduction=sequence_mean`` and ``prompt_mean``."""
    return {"sequence_mean": sequence_mean, "prompt_mean": prompt_mean}.get(name)


def sequence_mean(
    masks: Sequence[BoolArray], trajectories: Sequence[int], groups: Sequence[int]
) -> list[FloatArray]:
    """Weight 1 / (trajectories × trained tokens of the trajectory) for each trained token.

    All rows of a trajectory count together.

    Args:
        masks: [T] per row of the mini-batch, True where a token is trained on.
        trajectories: Number of each row's trajectory.
        groups: Number of each row's prompt; does not matter.

    Example:
        >>> rows = sequence_mean([np.array([True, True]), np.array([True, False])], [0, 1], [0, 0])
        >>> [row.tolist() for row in rows]
        [[0.25, 0.25], [0.5, 0.0]]
    """
    return _mean_of_means(masks, trajectories)


def prompt_mean(
    masks: Sequence[BoolArray], trajectories: Sequence[int], groups: Sequence[int]
) -> list[FloatArray]:
    """Weight 1 / (prompts × trained tokens of the prompt) for each trained token.

    A group that stands in for another (``dynamic_sampling.type=replace``) counts
    as a prompt of its own.

    Args:
        masks: [T] per row of the mini-batch, True where a token is trained on.
        trajectories: Number of each row's trajectory; does not matter.
        groups: Number of each row's prompt.

    Example:
        >>> rows = prompt_mean([np.array([True, True]), np.array([True, True])], [0, 1], [0, 0])
        >>> [row.tolist() for row in rows]
        [[0.25, 0.25], [0.25, 0.25]]
    """
    return _mean_of_means(masks, groups)


def _mean_of_means(masks: Sequence[BoolArray], owners: Sequence[int]) -> list[FloatArray]:
    lengths = dict.fromkeys(owners, 0)
    for mask, owner in zip(masks, owners, strict=True):
        lengths[owner] += int(np.count_nonzero(mask))
    return [
        mask * np.float32(1 / (len(lengths) * max(lengths[owner], 1)))
        for mask, owner in zip(masks, owners, strict=True)
    ]
