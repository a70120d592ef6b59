"""What a loss receives and returns.

Only tokens that are trained on are here: a masked token cannot reach a loss, so
its gradient is zero by construction. N counts those tokens over all rows of the
micro-batch, packed end to end in row order.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from torch import Tensor


@dataclass(frozen=True, kw_only=True, slots=True)
class LossInputs:
    """One micro-batch, packed.

    Example: two rows with 2 and 1 trained tokens give N = 3 and
    ``trajectory = [0, 0, 1]``.
    """

    logprobs: Tensor
    """[N] float32 under the current weights; carries the gradient."""
    entropy: Tensor
    """[N] float32 nats; carries the gradient only if the loss has a term ``entropy``."""
    advantages: Tensor
    """[N] float32."""
    trajectory: Tensor
    """[N] int64 number of the token's trajectory within the mini-batch."""
    group: Tensor
    """[N] int64 number of its group within the mini-batch."""
    position: Tensor
    """[N] int64 place of the token in its row."""
    old_logprobs: Tensor | None = None
    """[N] float32, if the loss needs them."""
    ref_logprobs: Tensor | None = None
    """[N] float32, if the loss needs them."""
    sampler_logprobs: Tensor | None = None
    """[N] float32; None if the data was not sampled."""
    returns: Tensor | None = None
    """[N] float32, if the advantage gives them."""
    teacher_logprobs: Tensor | None = None
    """[N] float32, if the loss needs them."""
    minibatch: Mapping[str, Tensor] = field(default_factory=dict)
    """Name → [M]: what ``Loss.prepare`` returned of all M tokens of the mini-batch, in no
    particular order; empty during that pass."""
    seed: int = 0
    """Key of the step's random choices; combine with trajectory and position."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ValueInputs:
    """What a micro-batch has for the critic, packed like `LossInputs`; nothing of the policy."""

    values: Tensor
    """[N] float32 of the critic's current weights; carries the gradient."""
    trajectory: Tensor
    """[N] int64, as in `LossInputs`."""
    group: Tensor
    """[N] int64, as in `LossInputs`."""
    position: Tensor
    """[N] int64, as in `LossInputs`."""
    old_values: Tensor | None = None
    """[N] float32 of the critic before this step's updates, if the loss needs them."""
    returns: Tensor | None = None
    """[N] float32, if the advantage gives them."""


@dataclass(frozen=True, kw_only=True, slots=True)
class TokenMetric:
    """A per-token quantity and how it is reduced over the mini-batch."""

    values: Tensor
    """[N], or one number per trajectory; detached."""
    reduction: Literal["mean", "std", "sum", "max", "min"] = "mean"
    """``std`` divides by the count."""


@dataclass(frozen=True, kw_only=True, slots=True)
class LossTerms:
    """Per-token terms of the objective, and what to report."""

    terms: Mapping[str, Tensor]
    """Name (``policy``, ``kl``, ``entropy``, ``value``) → [N]."""
    metrics: Mapping[str, TokenMetric] = field(default_factory=dict)
    """Metric name → per-token quantity."""
