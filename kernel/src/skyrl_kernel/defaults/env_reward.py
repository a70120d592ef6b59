"""The reward that the env gave, turn by turn."""

from collections.abc import Sequence

from skyrl_kernel.hookspecs import hookimpl
from skyrl_kernel.protocols import RewardFn
from skyrl_kernel.records import Reward, Trajectory


@hookimpl
def reward(name: str) -> RewardFn | None:
    """What the env said, unchanged."""
    return env_reward if name == "env_reward" else None


def env_reward(trajectories: Sequence[Trajectory]) -> list[Reward]:
    """One component, ``env``: the sum of the turns' rewards."""
    return [
        Reward(
            turns=tuple(turn.reward for turn in trajectory.turns),
            components={"env": float(sum(turn.reward for turn in trajectory.turns))},
        )
        for trajectory in trajectories
    ]
