"""Held-out pairs: how often, and by how much, the policy prefers what was preferred."""

from collections.abc import Mapping, Sequence

import numpy as np

from skyrl_dpo.config import DpoConfig
from skyrl_kernel.records import Scored


def preferences(scored: Sequence[Scored], *, config: DpoConfig) -> Mapping[str, float]:
    """Means over the pairs of which both sides are there; empty without one.

    ``accuracy`` is the fraction of pairs whose preferred answer has the higher reward;
    before training all rewards are 0 and so is it. ``loss`` is the training loss.

    Args:
        scored: Trajectories with the log-probs of policy and reference.
        config: ``trainer.algorithm.dpo``.
    """
    pairs: dict[str, dict[int, Scored]] = {}
    for one in scored:
        pairs.setdefault(one.trajectory.prompt.uid, {})[one.trajectory.sample] = one
    whole = [(pair[0], pair[1]) for pair in pairs.values() if len(pair) == 2]
    if not whole:
        return {}
    chosen, rejected = np.array([[_log_ratio(side) for side in pair] for pair in whole]).T
    margin = chosen - rejected
    if config.loss_type == "ipo_mean":
        lengths = np.array([[max(_tokens(side), 1) for side in pair] for pair in whole]).T
        margin = chosen / lengths[0] - rejected / lengths[1]
    return {
        "accuracy": float((chosen > rejected).mean()),
        "reward_margin": float(config.beta * (chosen - rejected).mean()),
        "chosen_reward": float(config.beta * chosen.mean()),
        "rejected_reward": float(config.beta * rejected.mean()),
        "loss": _loss(margin, config),
        "num_pairs": float(len(whole)),
    }


def _log_ratio(one: Scored) -> float:
    """Σ log π − log π_ref over the answer's tokens."""
    total = 0.0
    for segment, scores in zip(one.trajectory.segments, one.scores, strict=True):
        assert scores.old_logprobs is not None
        assert scores.ref_logprobs is not None
        difference = scores.old_logprobs - scores.ref_logprobs
        total += float(difference[segment.loss_mask].sum(dtype=np.float64))
    return total


def _tokens(one: Scored) -> int:
    return sum([int(segment.loss_mask.sum()) for segment in one.trajectory.segments])


def _loss(margin: "np.ndarray[tuple[int], np.dtype[np.float64]]", config: DpoConfig) -> float:
    import torch

    from skyrl_dpo.loss import pair_loss

    return float(pair_loss(torch.from_numpy(margin), config).mean())
