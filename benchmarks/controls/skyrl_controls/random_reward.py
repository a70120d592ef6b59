"""Control A: rewards that know nothing of the answer.

What a run gains with them it does not owe to the verifier.
"""

from collections.abc import Generator, Sequence
from dataclasses import replace

from skyrl_kernel.config import TrainerConfig
from skyrl_kernel.hookspecs import hookimpl
from skyrl_kernel.protocols import RewardFn, Settings
from skyrl_kernel.records import Reward, Trajectory
from skyrl_kernel.rng import generator

TRAINING_SPLIT = "train"
"""`extra_info.split` of the rows of multiply:train; those of multiply:validation say ``test``."""


@hookimpl(wrapper=True)
def reward(settings: Settings) -> Generator[None, RewardFn, RewardFn]:
    """Put the coin around whatever judges."""
    inner = yield
    seed = settings[TrainerConfig].seed

    def judge(trajectories: Sequence[Trajectory]) -> list[Reward]:
        rewards = inner(trajectories)
        return [
            tossed(reward, trajectory, seed) if is_training(trajectory) else reward
            for reward, trajectory in zip(rewards, trajectories, strict=True)
        ]

    return judge


def is_training(trajectory: Trajectory) -> bool:
    """True if the trajectory's row is one that is trained on."""
    return bool(trajectory.prompt.extras["extra_info"]["split"] == TRAINING_SPLIT)


def tossed(reward: Reward, trajectory: Trajectory, seed: int) -> Reward:
    """0 or 1 with equal chance, on the last turn; depends on who answered, not on the answer."""
    coin = generator(seed, "random_reward", trajectory.prompt.uid, trajectory.sample)
    value = float(coin.integers(2))
    return replace(
        reward, turns=(*(0.0 for _ in reward.turns[1:]), value), components={"coin": value}
    )
