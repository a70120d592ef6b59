"""Sums over tokens, divided by a constant: long answers are neither excused nor preferred.

Liu et al. 2025, "Understanding R1-Zero-Like Training" (Dr. GRPO),
arXiv:2503.20783, §3.2 and listing 1. The paper's constant is the generation
budget: so it is here, unless ``trainer.algorithm.max_seq_len`` is set. (SkyRL
has to be told.)
"""

from collections.abc import Sequence
from functools import partial

import numpy as np

from skyrl_kernel.config import AlgorithmConfig, GeneratorConfig
from skyrl_kernel.hookspecs import hookimpl
from skyrl_kernel.protocols import Reduction, Settings
from skyrl_kernel.records import BoolArray, FloatArray


@hookimpl
def make_reduction(name: str, settings: Settings) -> Reduction | None:
    """The reduction of ``trainer.algorithm.loss_reduction=seq_mean_token_sum_norm``."""
    if name != "seq_mean_token_sum_norm":
        return None
    length = (
        settings[AlgorithmConfig].max_seq_len
        or settings[GeneratorConfig].sampling_params.max_generate_length
    )
    return partial(seq_mean_token_sum_norm, length=length)


def seq_mean_token_sum_norm(
    masks: Sequence[BoolArray],
    trajectories: Sequence[int],
    groups: Sequence[int],
    *,
    length: int,
) -> list[FloatArray]:
    """Weight 1 / (trajectories × ``length``) for each trained token.

    Args:
        masks: [T] per row of the mini-batch, True where a token is trained on.
        trajectories: Number of each row's trajectory.
        groups: Number of each row's prompt; does not matter.
        length: The constant, in tokens, at least 1.

    Example:
        >>> masks = [np.array([True, True]), np.array([True, False])]
        >>> rows = seq_mean_token_sum_norm(masks, [0, 1], [0, 0], length=4)
        >>> [row.tolist() for row in rows]
        [[0.125, 0.125], [0.125, 0.0]]
    """
    weight = np.float32(1 / (max(len(set(trajectories)), 1) * length))
    return [mask * weight for mask in masks]
