"""GSPO: the ratio of a whole sequence decides what is clipped, since the reward is of the whole.

Zheng et al. 2025, "Group Sequence Policy Optimization", arXiv:2507.18071. With
the T trained tokens of a sequence,

    s = (π(y) / π_old(y))^(1/T) = exp(mean_t(logπ_t - logπ_old,t))          eq. 7
    gspo_sequence:  -min(s·A_t, clip(s)·A_t)                                eq. 5
    gspo:           -min(s_t·A_t, clip(s_t)·A_t),  s_t = sg[s]·π_t/sg[π_t]  eq. 13, 14

sg stops the gradient: s_t has the value of s and the gradient of token t alone.
Where all tokens of a sequence have one advantage, the two have equal values and
equal gradients (paper, eq. 10 and 17); with advantages by token, ``gspo`` gives each
token its own, and ``gspo_sequence`` gives every token the sequence's mean.

Differences from the paper:

1. ``gspo`` is the form by token, as in SkyRL; the form by sequence has a name of
   its own.
2. The paper averages over sequences: ``trainer.algorithm.loss_reduction=sequence_mean``,
   which the presets set and whose absence is warned of.
3. The mean log-ratio is clamped at 10 above, so that exp stays finite.
4. A sequence is a trajectory: all its token rows, the env's tokens left out.
"""

from typing import TYPE_CHECKING

from skyrl_grpo import clipped_loss
from skyrl_kernel.config import AlgorithmConfig
from skyrl_kernel.hookspecs import hookimpl
from skyrl_kernel.protocols import Loss, RunInfo, Settings
from skyrl_policy_losses.by_sequence import warn_of_another_reduction

if TYPE_CHECKING:
    from torch import Tensor

    from skyrl_kernel.torch import LossInputs, LossTerms

NAMES = ("gspo", "gspo_sequence")

MAX_MEAN_LOG_RATIO = 10.0
"""As in SkyRL: exp(10) ≈ 22,000 per token, far outside any clip range."""


@hookimpl
def loss(name: str, settings: Settings) -> Loss | None:
    """The losses of ``trainer.algorithm.policy_loss_type=gspo`` and ``gspo_sequence``."""
    if name not in NAMES:
        return None
    config = settings[AlgorithmConfig]
    low, high = config.eps_clip_low, config.eps_clip_high
    by_token = name == "gspo"

    def fn(inputs: "LossInputs") -> "LossTerms":
        from skyrl_kernel.torch import LossTerms, TokenMetric

        assert inputs.old_logprobs is not None, "declared in needs"
        means, place = mean_log_ratios(inputs.logprobs, inputs.old_logprobs, inputs.trajectory)
        if by_token:
            of_tokens = token_ratios(inputs.logprobs, means[place])
        else:
            of_tokens = sequence_ratios(means)[place]
        policy, clipped = clipped_loss(of_tokens, inputs.advantages, low, high)
        ratios = sequence_ratios(means.detach())
        return LossTerms(
            terms={"policy": policy},
            metrics={
                "loss_metrics/clip_ratio": TokenMetric(values=clipped.float()),
                "loss_metrics/ratio_mean": TokenMetric(values=ratios),
                "loss_metrics/ratio_max": TokenMetric(values=ratios, reduction="max"),
                "loss_metrics/ratio_min": TokenMetric(values=ratios, reduction="min"),
            },
        )

    return Loss(fn=fn, needs=frozenset({"old_logprobs"}))


@hookimpl
def on_run_start(run: RunInfo) -> None:
    """Warn of another reduction than the paper's."""
    warn_of_another_reduction(run, NAMES)


def mean_log_ratios(
    logprobs: "Tensor", old_logprobs: "Tensor", trajectory: "Tensor"
) -> tuple["Tensor", "Tensor"]:
    """``log s = mean_t(logπ_t - logπ_old,t)`` of each sequence.

    Args:
        logprobs: [N] of the policy; carries the gradient.
        old_logprobs: [N] of the policy before this step's updates.
        trajectory: [N] int64 number of the token's sequence.

    Returns:
        The means [S], one per sequence; and [N] int64, each token's place among them.

    Example:
        >>> import torch
        >>> now, old = torch.tensor([-1.0, -2.0, -1.0]), torch.tensor([-1.5, -1.5, -2.0])
        >>> means, place = mean_log_ratios(now, old, torch.tensor([7, 7, 4]))
        >>> means.tolist(), place.tolist()  # 1; (½ - ½) / 2
        ([1.0, 0.0], [1, 1, 0])
    """
    import torch

    numbers, place, counts = torch.unique(trajectory, return_inverse=True, return_counts=True)
    differences = logprobs - old_logprobs
    sums = differences.new_zeros(len(numbers)).index_add(0, place, differences)
    return sums / counts, place


def sequence_ratios(means: "Tensor") -> "Tensor":
    """``s``, eq. 7, from its logarithm [S]; that clamped above at `MAX_MEAN_LOG_RATIO`."""
    return means.clamp(max=MAX_MEAN_LOG_RATIO).exp()


def token_ratios(logprobs: "Tensor", means: "Tensor") -> "Tensor":
    """``sg[s]·π_t/sg[π_t]``, eq. 14: the value of s, the gradient of the token.

    Args:
        logprobs: [N] of the policy; carries the gradient.
        means: [N] log s of each token's sequence.
    """
    own = logprobs - logprobs.detach()  # 0, with a slope of 1
    return sequence_ratios(means.detach() + own)
