"""Trajectories that did not end by themselves are not trained on.

Source: DAPO, Yu et al. 2025, arXiv:2503.14476, §3.4 (overlong filtering). Their
rewards still count in the group's baseline, as in SkyRL.
"""

from collections.abc import Generator
from dataclasses import replace

import numpy as np

from skyrl_kernel.config.generator import GeneratorConfig
from skyrl_kernel.hookspecs import hookimpl
from skyrl_kernel.protocols import Generate, RolloutContext, Settings
from skyrl_kernel.records import Prompt, StopReason, Trajectory


@hookimpl(wrapper=True)
def generate(settings: Settings) -> Generator[None, Generate | None, Generate | None]:
    """Mask what was cut off, where ``generator.apply_overlong_filtering`` asks for it."""
    inner = yield
    if inner is None or not settings[GeneratorConfig].apply_overlong_filtering:
        return inner
    return filtered(inner)


def filtered(inner: Generate) -> Generate:
    """``inner``, with every token masked where ``stop_reason`` is not ``stop``."""

    async def play(prompt: Prompt, context: RolloutContext) -> Trajectory:
        trajectory = await inner(prompt, context)
        if trajectory.stop_reason is StopReason.STOP:
            return trajectory
        masked = [
            replace(segment, loss_mask=np.zeros_like(segment.loss_mask))
            for segment in trajectory.segments
        ]
        return replace(trajectory, segments=tuple(masked))

    return play
