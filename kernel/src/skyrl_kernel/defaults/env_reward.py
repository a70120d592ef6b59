"""The reward that the env gave, turn by turn."""

from collections.abc import Sequence

from skyrl_kernel.hookspecs import hookimpl
from skyrl_kernel.protocols import RewardFn
from skyrl_kernel.records import Reward, Trajectory


@hookimpl
def reward(name: str) -> RewardFn | None:
    """What the env said, unchanged."""
    return env_reward if name == "env_reward" else None


class EnvReward:
    """One component, ``env``: the sum of the turns' rewards."""

    instant = True

    def __call__(self, trajectories: Sequence[Trajectory]) -> list[Reward]:
        """Judge them by what is on their turns."""
        rewards = []
        for trajectory in trajectories:
            turns = tuple([turn.reward for turn in trajectory.turns])
            rewards.append(Reward(turns=turns, components={"env": float(sum(turns))}))
        return rewards


env_reward = EnvReward()
