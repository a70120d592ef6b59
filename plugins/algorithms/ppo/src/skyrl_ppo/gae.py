"""Generalised advantage estimation: how much better than the critic expected a token did.

Schulman et al. 2016, arXiv:1506.02438, eq. 11-16. Only the tokens that the policy
sampled are steps; what stands between them is part of what the next one sees.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from skyrl_kernel.config import AlgorithmConfig
from skyrl_kernel.hookspecs import hookimpl
from skyrl_kernel.protocols import Advantage, CreditedGroup, Settings
from skyrl_kernel.records import BoolArray, Scored, TokenAdvantages
from skyrl_ppo.value_loss import loss

__all__ = ["advantage", "credit_row", "gae", "loss", "whiten"]

Floats = NDArray[np.floating[Any]]

NAME = "gae"
EPSILON = 1e-8
"""Added to the variance, as in SkyRL."""


@hookimpl
def advantage(name: str, settings: Settings) -> Advantage | None:
    """The advantage of ``trainer.algorithm.advantage_estimator=gae``."""
    if name != NAME:
        return None
    gamma, lambd = settings[AlgorithmConfig].gamma, settings[AlgorithmConfig].lambd

    def fn(groups: Sequence[Sequence[Scored]]) -> list[list[tuple[TokenAdvantages, ...]]]:
        return whiten([[(credit(one, gamma, lambd),) for one in group] for group in groups])

    return Advantage(fn=fn, needs=frozenset({"values"}), needs_one_row=True, measure=measure)


def gae(rewards: Floats, values: Floats, gamma: float = 1.0, lambd: float = 1.0) -> Floats:
    """``A_t = δ_t + γλ A_{t+1}`` with ``δ_t = r_t + γ V_{t+1} - V_t``; after the last step both are 0.

    Args:
        rewards: [T] of each step, in task units.
        values: [T] before each step.
        gamma: γ, the discount of a reward per step.
        lambd: λ; 1 trusts the rewards, 0 the critic.

    Returns:
        [T] float64, in task units.

    Example: δ = (1 + 1 - 0.5, 2 + 1.5 - 1, 3 - 1.5) = (1.5, 2.5, 1.5), summed from the end.
        >>> gae(np.array([1.0, 2.0, 3.0]), np.array([0.5, 1.0, 1.5])).tolist()
        [5.5, 4.0, 1.5]
    """
    advantages = np.zeros(len(rewards))
    following = next_value = 0.0
    for step in reversed(range(len(rewards))):
        surprise = float(rewards[step]) + gamma * next_value - float(values[step])
        following = advantages[step] = surprise + gamma * lambd * following
        next_value = float(values[step])
    return advantages


def credit_row(
    rewards: Floats, values: Floats, mask: BoolArray, gamma: float, lambd: float
) -> TokenAdvantages:
    """Advantages and returns of one token row.

    A reward on a token that is not trained on goes to the trained one before it,
    the last action that it can answer to (to the first, if there is none before),
    so that none is lost or credited to a later turn.

    Args:
        rewards: [T] task units.
        values: [T] the critic's, before each token; read where ``mask`` is True.
        mask: [T] True where a token is trained on.
        gamma: γ per trained token.
        lambd: λ.

    Returns:
        Advantages, not whitened, and returns A + V, both 0 where ``mask`` is False.

    Example: the middle token is an observation, its reward of 2 answers to the first token.
        >>> row = credit_row(
        ...     np.array([1.0, 2.0, 3.0]), np.array([0.5, 1.0, 1.5]),
        ...     np.array([True, False, True]), 1.0, 1.0,
        ... )
        >>> row.advantages.tolist(), row.returns.tolist()
        ([5.5, 0.0, 1.5], [6.0, 0.0, 3.0])
    """
    advantages, returns = np.zeros(len(mask), np.float32), np.zeros(len(mask), np.float32)
    if mask.any():
        before = np.maximum(np.cumsum(mask) - 1, 0)
        earned = np.zeros(int(mask.sum()))
        np.add.at(earned, before, rewards)
        kept = values[mask].astype(np.float64)
        advantages[mask] = (steps := gae(earned, kept, gamma, lambd))
        returns[mask] = steps + kept
    return TokenAdvantages(advantages=advantages, loss_mask=mask, returns=returns)


def credit(scored: Scored, gamma: float, lambd: float) -> TokenAdvantages:
    """`credit_row` of a trajectory's only row, with the rewards of its turns and tokens."""
    (rewards,), (segment,) = scored.rewards_by_token(), scored.trajectory.segments
    values = scored.scores[0].values
    assert values is not None, "declared in needs"
    return credit_row(rewards, values, segment.loss_mask, gamma, lambd)


def whiten(
    credited: Sequence[Sequence[tuple[TokenAdvantages, ...]]],
) -> list[list[tuple[TokenAdvantages, ...]]]:
    """Advantages of mean 0 and sample variance 1 over the trained tokens of all rows.

    ``(A - mean) / sqrt(var + ε)``; returns stay as they are. If all advantages are
    equal they become 0, and so does the advantage of a token that is alone: there
    is none to be better than.
    """
    entries = [entry for group in credited for rows in group for entry in rows]
    flat = _joined([entry.advantages[entry.loss_mask] for entry in entries])
    if flat.size:
        mean = flat[0] if flat.min() == flat.max() else flat.mean()  # no rounding becomes a signal
        scale = 1 / np.sqrt(flat.var(ddof=1) + EPSILON) if flat.size > 1 else 1.0

    def whitened(entry: TokenAdvantages) -> TokenAdvantages:
        if not entry.loss_mask.any():
            return entry
        advantages = np.where(entry.loss_mask, (entry.advantages - mean) * scale, 0)
        return replace(entry, advantages=advantages.astype(np.float32))

    return [[tuple(map(whitened, rows)) for rows in group] for group in credited]


def measure(groups: Sequence[CreditedGroup]) -> Mapping[str, float]:
    """``critic/…``: how well the critic foretold the returns of the trained tokens.

    ``explained_variance`` is 1 - Var(R - V) / Var(R): 1 for a critic that knows,
    0 for one that always says the same, below 0 for one that is worse than that.
    It is left out where all returns are equal, and everything where nothing is
    trained on.
    """
    pairs = [
        (entry.returns[entry.loss_mask], scores.values[entry.loss_mask])
        for group in groups
        for one, entries in group
        for scores, entry in zip(one.scores, entries, strict=True)
        if entry.returns is not None and scores.values is not None
    ]
    returns, values = (_joined([pair[side] for pair in pairs]) for side in (0, 1))
    if not returns.size:
        return {}
    found = {
        "critic/returns_mean": float(returns.mean()),
        "critic/returns_std": float(returns.std()),
        "critic/old_values_mean": float(values.mean()),
        "critic/old_values_std": float(values.std()),
    }
    if returns.min() != returns.max():
        found["critic/explained_variance"] = float(1 - (returns - values).var() / returns.var())
    return found


def _joined(parts: Sequence[Floats]) -> NDArray[np.float64]:
    return np.concatenate(parts).astype(np.float64) if parts else np.zeros(0)
