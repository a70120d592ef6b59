"""The critic's loss: half the squared error of its values, which move only so far per batch.

Not in the text of arXiv:1707.06347 but in the code that came with it (the
repository openai/baselines, ``ppo2``); the maximum makes the clip pessimistic, as
the policy's is.
"""

from collections.abc import Generator
from dataclasses import replace
from typing import TYPE_CHECKING

from skyrl_kernel.config import AlgorithmConfig
from skyrl_kernel.hookspecs import hookimpl
from skyrl_kernel.protocols import Loss, Settings

if TYPE_CHECKING:
    from torch import Tensor

    from skyrl_kernel.torch import LossTerms, ValueInputs


@hookimpl(wrapper=True)
def loss(settings: Settings) -> Generator[None, Loss | None, Loss | None]:
    """Add the term ``value`` where ``trainer.algorithm.advantage_estimator`` is gae."""
    inner = yield
    algorithm = settings[AlgorithmConfig]
    if inner is None or algorithm.advantage_estimator != "gae":
        return inner
    return with_value_loss(inner, algorithm.value_clip)


def with_value_loss(inner: Loss, value_clip: float) -> Loss:
    """``inner`` plus the critic's loss per token, which the trainer reports as ``critic/critic_loss``.

    Its mean is over each trajectory's tokens, then over trajectories (SkyRL's).
    The coefficient is 1: no weight is shared with the policy and the critic has an
    optimizer of its own, so another one would change nothing but the clipping of
    its gradient.
    """

    def critic(inputs: "ValueInputs") -> "LossTerms":
        from skyrl_kernel.torch import LossTerms, TokenMetric

        assert inputs.old_values is not None, "declared in needs"
        assert inputs.returns is not None, "given by the advantage"
        term, clipped = clipped_value_loss(
            inputs.values, inputs.old_values, inputs.returns, value_clip
        )
        return LossTerms(
            terms={"value": term},
            metrics={
                "critic/values_mean": TokenMetric(values=inputs.values.detach()),
                "critic/values_clipfrac": TokenMetric(values=clipped.float()),
            },
        )

    return replace(
        inner,
        critic=critic,
        needs=inner.needs | {"values"},
        coefficients={**inner.coefficients, "value": 1.0},
    )


def clipped_value_loss(
    values: "Tensor", old_values: "Tensor", returns: "Tensor", value_clip: float
) -> tuple["Tensor", "Tensor"]:
    """``0.5 · max((V - R)², (V_old + clip(V - V_old, ±value_clip) - R)²)`` per token.

    Args:
        values: [N] of the critic's current weights, task units.
        old_values: [N] before the step's updates.
        returns: [N] what was still earned.
        value_clip: Furthest that a value gains from moving, above 0.

    Returns:
        The loss [N], and [N] bool: the clip made the token's loss larger, so the
        token has no gradient.

    Example: the second value has moved towards its return by more than 0.2.
        >>> import torch
        >>> loss, clipped = clipped_value_loss(
        ...     torch.tensor([0.1, 0.5]), torch.zeros(2), torch.ones(2), 0.2
        ... )
        >>> [round(x, 4) for x in loss.tolist()], clipped.tolist()
        ([0.405, 0.32], [False, True])
    """
    # Within the bounds this is ``values`` to the bit: rounding must not look like a clip.
    near = values.clamp(old_values - value_clip, old_values + value_clip)
    free, bound = (values - returns) ** 2, (near - returns) ** 2
    return 0.5 * free.maximum(bound), (bound > free).detach()
