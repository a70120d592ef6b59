"""The policy learns from its own samples, each token judged by a teacher.

Agarwal et al. 2023, "On-Policy Distillation of Language Models", arXiv:2306.13649
(GKD with student data only, λ = 1, and the reverse KL), in the form of policy
gradients that Thinking Machines 2025, "On-Policy Distillation", uses. With x the
prompt and y sampled by the policy,

    A_t = log π_teacher(y_t | x, y_<t) − log π_old(y_t | x, y_<t)

Its expectation under the policy is −KL(π ‖ π_teacher) at that place, so the
importance-sampled gradient of Σ A_t descends the reverse KL.

Differences from the papers:

1. GKD differentiates the divergence over the whole vocabulary; here only the
   sampled token is looked at: unbiased for the same gradient, and noisier. (A
   teacher then needs to give one number per token.)
2. A token is credited for its own place only, not for what it leads to (both
   papers: GKD does not differentiate through sampling, Thinking Machines
   discount by 0).

From SkyRL, whose example writes −KL into the rewards and takes the estimator
`no_op`: the same numbers; rewards stay what the env gave, and are reported, but
not learned from.
"""

from collections.abc import Mapping, Sequence

import numpy as np

from skyrl_kernel.hookspecs import hookimpl
from skyrl_kernel.protocols import Advantage, CreditedGroup
from skyrl_kernel.records import FloatArray, Scored, Scores, TokenAdvantages


@hookimpl
def advantage(name: str) -> Advantage | None:
    """The advantage of ``trainer.algorithm.advantage_estimator=distillation``."""
    if name != "distillation":
        return None
    return Advantage(
        fn=distillation,
        needs=frozenset({"old_logprobs", "teacher_logprobs"}),
        measure=measure,
    )


def distillation(
    groups: Sequence[Sequence[Scored]],
) -> list[list[tuple[TokenAdvantages, ...]]]:
    """How much likelier the teacher finds each trained token than the policy did, in nats.

    Example: the policy gave a token probability 0.5 and the teacher 0.25: its
    advantage is ln 0.25 − ln 0.5 = −0.693.

    Args:
        groups: With the log-probs of policy and teacher; rewards are not read.
    """
    return [
        [
            tuple(
                TokenAdvantages(
                    advantages=np.where(segment.loss_mask, -_log_ratio(scores), np.float32(0)),
                    loss_mask=segment.loss_mask,
                )
                for segment, scores in zip(one.trajectory.segments, one.scores, strict=True)
            )
            for one in group
        ]
        for group in groups
    ]


def measure(groups: Sequence[CreditedGroup]) -> Mapping[str, float]:
    """``loss/teacher_kl``: KL(policy ‖ teacher), the mean over trained tokens, in nats.

    ``loss/teacher_kl_max`` is the token that the teacher likes least against the
    policy. Nothing without a trained token.
    """
    ratios = [
        _log_ratio(scores)[entry.loss_mask]
        for group in groups
        for one, entries in group
        for scores, entry in zip(one.scores, entries, strict=True)
    ]
    flat = np.concatenate(ratios) if ratios else np.zeros(0)
    if not flat.size:
        return {}
    return {
        "loss/teacher_kl": float(flat.mean(dtype=np.float64)),
        "loss/teacher_kl_max": float(flat.max()),
    }


def _log_ratio(scores: Scores) -> FloatArray:
    """[T] log π_old − log π_teacher."""
    assert scores.old_logprobs is not None, "declared in needs"
    assert scores.teacher_logprobs is not None, "declared in needs"
    difference: FloatArray = scores.old_logprobs - scores.teacher_logprobs
    return difference
