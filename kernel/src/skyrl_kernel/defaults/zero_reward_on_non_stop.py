"""Trajectories that did not end by themselves earn nothing."""

from collections.abc import Generator, Sequence

from skyrl_kernel.config.generator import GeneratorConfig
from skyrl_kernel.hookspecs import hookimpl
from skyrl_kernel.protocols import RewardFn, Settings
from skyrl_kernel.records import Reward, StopReason, Trajectory


@hookimpl(wrapper=True)
def reward(settings: Settings) -> Generator[None, RewardFn | None, RewardFn | None]:
    """Take the reward away, where ``generator.zero_reward_on_non_stop`` asks for it."""
    inner = yield
    if inner is None or not settings[GeneratorConfig].zero_reward_on_non_stop:
        return inner
    return zeroed(inner)


def zeroed(inner: RewardFn) -> RewardFn:
    """``inner``, with reward 0 in every turn where ``stop_reason`` is not ``stop``.

    What was taken away stands in the components as ``non_stop``, so that they
    still add up to the total.
    """

    def judge(trajectories: Sequence[Trajectory]) -> list[Reward]:
        return [
            reward if one.stop_reason is StopReason.STOP else _nothing(reward)
            for one, reward in zip(trajectories, inner(trajectories), strict=True)
        ]

    return judge


def _nothing(reward: Reward) -> Reward:
    return Reward(
        turns=(0.0,) * len(reward.turns),
        components={**reward.components, "non_stop": -reward.total},
    )
