"""Per-token estimators of KL(policy ‖ reference) from tokens that the policy sampled.

Source: J. Schulman 2020, "Approximating KL Divergence", whose names these are.
"""

from collections.abc import Callable

from torch import Tensor

from skyrl_kernel.torch.precision import at_least_float32
from skyrl_kernel.torch.ratios import MAX_LOG_RATIO

MAX_K3 = 10.0
"""Bound of the k3 estimate in nats, as in SkyRL: one outlier must not own the batch."""


def _k1(logprobs: Tensor, reference: Tensor) -> Tensor:
    return logprobs - reference


def _abs(logprobs: Tensor, reference: Tensor) -> Tensor:
    return (logprobs - reference).abs()


def _k2(logprobs: Tensor, reference: Tensor) -> Tensor:
    return 0.5 * (logprobs - reference) ** 2


def _k3(logprobs: Tensor, reference: Tensor) -> Tensor:
    difference = (reference - logprobs).clamp(-MAX_LOG_RATIO, MAX_LOG_RATIO)
    return (difference.exp() - difference - 1).clamp(-MAX_K3, MAX_K3)


KL_ESTIMATORS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "k1": _k1,
    "k2": _k2,
    "k3": _k3,
    "abs": _abs,
}


def kl_estimate(logprobs: Tensor, reference: Tensor, kind: str) -> Tensor:
    """Per-token estimate in nats, same shape as the inputs.

    Args:
        logprobs: Under the policy.
        reference: The same tokens under the reference.
        kind: ``k1`` (unbiased, may be negative), ``k2``, ``k3`` (unbiased and
            never negative) or ``abs``.

    Raises:
        ValueError: Unknown ``kind``; names the known ones.

    Example:
        >>> import torch
        >>> kl_estimate(torch.tensor([0.2]), torch.tensor([0.1]), "k3").item()  # e^-.1 + .1 - 1
        0.00483739...
    """
    try:
        estimator = KL_ESTIMATORS[kind]
    except KeyError:
        raise ValueError(
            f"no KL estimator named '{kind}'; there are {', '.join(KL_ESTIMATORS)}"
        ) from None
    return estimator(at_least_float32(logprobs), at_least_float32(reference))
