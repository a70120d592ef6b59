"""The numbers of scores: how far the policy is from the reference, and the trainer from the engine.

Both are of the weights before the step's updates, over trained tokens only:
docs/reference/metrics.md.
"""

from collections.abc import Callable, Iterator, Sequence

import numpy as np

from skyrl_kernel.protocols import CreditedGroup
from skyrl_kernel.records import FloatArray, UpdateResult

MISMATCH = "policy/rollout_train_logprobs_abs_diff"
_OF_UPDATE = "minibatch_rollout_logprobs_abs_diff"
_MAX_LOG_RATIO, _MAX_K3 = 20.0, 10.0
"""As in `skyrl_kernel.torch.kl`, with which a test compares."""

_Pair = tuple[FloatArray, FloatArray]


def kl_metrics(groups: Sequence[CreditedGroup], estimator: str) -> dict[str, float]:
    """``loss/avg_kl`` and ``loss/avg_kl_max``: KL(policy ‖ reference); nothing without a reference.

    The mean over each row's trained tokens, and the greatest absolute value of
    each row; then the mean over rows.

    Args:
        groups: The batch.
        estimator: ``trainer.algorithm.kl_estimator_type``.
    """
    pairs = list(_trained_pairs(groups, "old_logprobs", "ref_logprobs"))
    if not pairs:
        return {}
    policy, reference = _flat(pairs)
    counts = np.array([len(one) for one, _ in pairs])
    starts = np.cumsum(counts) - counts
    kl = KL_ESTIMATORS[estimator](policy, reference)
    return {
        "loss/avg_kl": float((np.add.reduceat(kl, starts) / counts).mean()),
        "loss/avg_kl_max": float(np.maximum.reduceat(np.abs(kl), starts).mean()),
    }


def mismatch_metrics(groups: Sequence[CreditedGroup]) -> dict[str, float]:
    """``policy/rollout_train_logprobs_abs_diff_…``: |old − sampler| per token, nats.

    Nothing where the trainer has not computed old log-probs (`mismatch_of_update`
    knows them then), or nothing was sampled.
    """
    pairs = list(_trained_pairs(groups, "old_logprobs", None))
    if not pairs:
        return {}
    old, sampler = _flat(pairs)
    differences = np.abs(old - sampler)
    return {
        f"{MISMATCH}_mean": float(differences.mean()),
        f"{MISMATCH}_std": float(differences.std()),
        f"{MISMATCH}_min": float(differences.min()),
        f"{MISMATCH}_max": float(differences.max()),
    }


def mismatch_of_update(first: UpdateResult) -> dict[str, float]:
    """The same of a step's first mini-batch, which its update computes before it moves a weight.

    Nothing where nothing was sampled, or the trainer does not tell.

    Example:
        >>> told = {"minibatch_rollout_logprobs_abs_diff_mean": 0.01, "grad_norm": 1.0}
        >>> mismatch_of_update(UpdateResult(metrics=told, weights_changed=True))
        {'policy/rollout_train_logprobs_abs_diff_mean': 0.01}
    """
    return {
        f"{MISMATCH}{name.removeprefix(_OF_UPDATE)}": value
        for name, value in first.metrics.items()
        if name.startswith(_OF_UPDATE)
    }


def _trained_pairs(
    groups: Sequence[CreditedGroup], score: str, other: str | None
) -> Iterator[_Pair]:
    """Two log-probs of each row's trained tokens; ``other`` None is the sampler's."""
    for group in groups:
        for scored, entries in group:
            rows = zip(scored.trajectory.segments, scored.scores, entries, strict=True)
            for segment, scores, entry in rows:
                first: FloatArray | None = getattr(scores, score)
                second: FloatArray | None = (
                    segment.logprobs if other is None else getattr(scores, other)
                )
                if first is None or second is None or first is second:
                    continue
                mask = entry.loss_mask
                if mask.any():
                    yield first[mask], second[mask]


def _flat(pairs: Sequence[_Pair]) -> _Pair:
    return np.concatenate([one for one, _ in pairs]), np.concatenate([two for _, two in pairs])


def _k3(policy: FloatArray, reference: FloatArray) -> FloatArray:
    difference = (reference - policy).clip(-_MAX_LOG_RATIO, _MAX_LOG_RATIO)
    k3: FloatArray = (np.exp(difference) - difference - 1).clip(-_MAX_K3, _MAX_K3)
    return k3


KL_ESTIMATORS: dict[str, Callable[[FloatArray, FloatArray], FloatArray]] = {
    "k1": lambda policy, reference: policy - reference,
    "abs": lambda policy, reference: np.abs(policy - reference),
    "k2": lambda policy, reference: 0.5 * (policy - reference) ** 2,
    "k3": _k3,
}
"""Per-token estimates, by the names of ``trainer.algorithm.kl_estimator_type``."""
