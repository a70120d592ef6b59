"""Probability ratios of the sampled tokens."""

from torch import Tensor

from skyrl_kernel.torch.precision import at_least_float32

MAX_LOG_RATIO = 20.0
"""exp(20) ≈ 4.9e8: beyond it a float32 ratio carries no information but can overflow."""


def ratio(logprobs: Tensor, other: Tensor) -> Tensor:
    """``exp(logprobs - other)``, the difference clamped to ±`MAX_LOG_RATIO`.

    Example:
        >>> import torch
        >>> ratio(torch.tensor([0.0, 1e4]), torch.tensor([0.0, 0.0])).tolist()
        [1.0, 485165184.0]
    """
    difference = at_least_float32(logprobs - other)
    return difference.clamp(-MAX_LOG_RATIO, MAX_LOG_RATIO).exp()
