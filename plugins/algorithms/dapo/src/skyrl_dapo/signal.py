"""Which groups say nothing about how to do better."""

from skyrl_dapo.overlong import COMPONENT
from skyrl_kernel.records import EQUAL_REWARDS, Group, Trajectory


def flaw(group: Group, tolerance: float) -> str:
    """Why a group teaches nothing, or an empty string.

    All its trajectories are compared, those that are not trained on too: their
    rewards count in the advantages of the others. A group that has one trajectory
    because no more were asked for is compared with nothing, and kept.

    Args:
        group: Judged.
        tolerance: Largest spread of rewards that counts as equal.
    """
    if not group.trajectories:
        return "all trajectories lost"
    if len(group.trajectories) == 1 and group.failures:
        return "all trajectories but one lost: nothing to compare it with"
    segments = [segment for one in group.trajectories for segment in one.segments]
    if not any(segment.loss_mask.any() for segment in segments):
        return "no token to train on"
    earned = [_without_penalty(one) for one in group.trajectories]
    if len(earned) > 1 and max(earned) - min(earned) <= tolerance:
        return EQUAL_REWARDS
    return ""


def _without_penalty(trajectory: Trajectory) -> float:
    components = trajectory.reward.components if trajectory.reward is not None else {}
    return trajectory.total_reward - components.get(COMPONENT, 0.0)
