"""Soft overlong punishment: the nearer to the limit, the less an answer earns.

Yu et al. 2025, arXiv:2503.14476, §3.4, eq. 13: a sudden 0 for what was cut off
tells the model nothing about length; a slope does. In SkyRL this is an example
trainer, which sets the reward of what was cut off to 0 instead.
"""

from collections.abc import Generator, Sequence

from skyrl_kernel.config import AlgorithmConfig, GeneratorConfig
from skyrl_kernel.errors import ConfigError
from skyrl_kernel.hookspecs import hookimpl
from skyrl_kernel.protocols import RewardFn, Settings
from skyrl_kernel.records import Reward, Trajectory

COMPONENT = "overlong_penalty"
"""Name of the punishment among a reward's components."""
SHARE = 5
"""One in so many tokens of the limit is the buffer of the paper: 4096 of 20480."""


@hookimpl(wrapper=True)
def reward(settings: Settings) -> Generator[None, RewardFn | None, RewardFn | None]:
    """Punish, where ``trainer.algorithm.overlong_buffer_len`` asks for it.

    Raises:
        ConfigError: The buffer is longer than the limit.
    """
    inner = yield
    algorithm = settings[AlgorithmConfig]
    limit = settings[GeneratorConfig].sampling_params.max_generate_length
    asked = algorithm.overlong_buffer_len
    buffer = max(limit // SHARE, 1) if asked == "auto" else asked
    if inner is None or not buffer:
        return inner
    if buffer > limit:
        raise ConfigError(
            f"trainer.algorithm.overlong_buffer_len={buffer} is more than a completion may have: "
            f"generator.sampling_params.max_generate_length={limit}; lower it (auto is a fifth of the "
            "limit), or raise the limit"
        )
    return with_penalty(inner, limit, buffer, algorithm.overlong_buffer_penalty_factor)


def penalty(length: int, limit: int, buffer: int, factor: float) -> float:
    """0 up to ``limit - buffer`` tokens, then linearly down to ``-factor`` at ``limit``.

    Args:
        length: Tokens of a completion.
        limit: The most that it may have.
        buffer: Tokens below the limit over which the reward falls, from 1 to ``limit``.
        factor: What is taken at the limit and beyond, in task units.

    Example:
        >>> [penalty(length, limit=20, buffer=4, factor=1.0) for length in (16, 17, 20, 25)]
        [0.0, -0.25, -1.0, -1.0]
    """
    over = min(max(length - (limit - buffer), 0), buffer)
    return -factor * (over / buffer) if over else 0.0


def with_penalty(inner: RewardFn, limit: int, buffer: int, factor: float) -> RewardFn:
    """``inner``, less the penalty of each trajectory's longest completion, on its last turn.

    It stands in the components as ``overlong_penalty``, so that they still add up
    to the total.
    """

    def judge(trajectories: Sequence[Trajectory]) -> list[Reward]:
        return [
            _punished(reward, penalty(_longest(one), limit, buffer, factor))
            for one, reward in zip(trajectories, inner(trajectories), strict=True)
        ]

    return judge


def _longest(trajectory: Trajectory) -> int:
    return max((turn.stop - turn.start for turn in trajectory.turns), default=0)


def _punished(reward: Reward, amount: float) -> Reward:
    if not reward.turns:
        return reward
    return Reward(
        turns=(*reward.turns[:-1], reward.turns[-1] + amount),
        components={**reward.components, COMPONENT: amount},
    )
