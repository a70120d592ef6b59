"""REINFORCE++: what a token and those after it earned, against the whole batch.

Hu et al. 2025, arXiv:2501.03262, eq. 8: the reward of the answer on its last
token, less the KL of the token and of those after it.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from skyrl_kernel.config import AlgorithmConfig
from skyrl_kernel.hookspecs import hookimpl
from skyrl_kernel.protocols import Advantage, Settings
from skyrl_kernel.records import BoolArray, FloatArray, Scored, TokenAdvantages
from skyrl_reinforce.whiten import whitened


@hookimpl
def advantage(name: str, settings: Settings) -> Advantage | None:
    """The advantage of ``trainer.algorithm.advantage_estimator=reinforce++``."""
    if name != "reinforce++":
        return None
    gamma = settings[AlgorithmConfig].gamma
    return Advantage(fn=lambda groups: credit(groups, gamma), needs_one_row=True)


def token_returns(
    rewards: FloatArray, loss_mask: BoolArray, gamma: float = 1.0
) -> NDArray[np.float64]:
    """``R_i = r_i + γ R_{i+1}`` over the trained tokens of a row.

    What is earned on a token that is not trained on counts for the trained token
    before it (for the first, if there is none before).

    Args:
        rewards: [T] in task units, of all tokens.
        loss_mask: [T] True where a token is trained on.
        gamma: Discount per trained token, in [0, 1].

    Returns:
        [N] returns of the N trained tokens, in task units.

    Example:
        >>> mask = np.array([False, True, True, False, True])  # an env's reply between two turns
        >>> token_returns(np.array([0, 0, 1, 0, 2], np.float32), mask, gamma=0.5).tolist()
        [1.0, 2.0, 2.0]
    """
    (places,) = np.nonzero(loss_mask)
    if not places.size:
        return np.zeros(0)
    places[0] = 0  # where the first completion is empty, its reward stands on the prompt
    earned = np.add.reduceat(rewards.astype(np.float64), places)
    if gamma == 1:
        return earned[::-1].cumsum()[::-1]
    returns = np.zeros_like(earned)
    running = 0.0
    for i in range(len(earned) - 1, -1, -1):
        running = earned[i] + gamma * running
        returns[i] = running
    return returns


def credit(
    groups: Sequence[Sequence[Scored]], gamma: float
) -> list[list[tuple[TokenAdvantages, ...]]]:
    """Each trained token's return, normalised over those of the whole batch."""
    returns = [
        token_returns(rewards, segment.loss_mask, gamma)
        for group in groups
        for one in group
        for rewards, segment in zip(one.rewards_by_token(), one.trajectory.segments, strict=True)
    ]
    advantages = iter(whitened(returns))

    def entry(mask: BoolArray) -> TokenAdvantages:
        row = np.zeros(len(mask), np.float32)
        row[mask] = next(advantages)
        return TokenAdvantages(advantages=row, loss_mask=mask)

    return [
        [tuple([entry(segment.loss_mask) for segment in one.trajectory.segments]) for one in group]
        for group in groups
    ]
