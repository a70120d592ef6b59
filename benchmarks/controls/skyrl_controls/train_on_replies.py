"""A mistake to look at: training on what the env said, as if the policy had said it.

The kernel refuses masks that mark what nothing sampled. So this agent lies: it
also claims that the policy sampled the replies. Needs
``trainer.algorithm.recompute_old_logprobs=true``, so that the ratio of such a token
is 1, as it is in a framework that makes the mistake.
"""

from collections.abc import Generator
from dataclasses import replace

import numpy as np

from skyrl_kernel.config import AlgorithmConfig
from skyrl_kernel.errors import ConfigError
from skyrl_kernel.hookspecs import hookimpl
from skyrl_kernel.protocols import Generate, RolloutContext, Settings
from skyrl_kernel.records import NOT_SAMPLED, Prompt, Segment, Trajectory


@hookimpl(wrapper=True)
def generate(settings: Settings) -> Generator[None, Generate | None, Generate | None]:
    """Unmask the replies of training episodes.

    Raises:
        ConfigError: Log-probs of the old policy are not recomputed.
    """
    inner = yield
    if inner is None:
        return None
    if not settings[AlgorithmConfig].recompute_old_logprobs:
        raise ConfigError(
            "train_on_replies has no log-probs of the replies' tokens; set "
            "trainer.algorithm.recompute_old_logprobs=true"
        )

    async def lying(prompt: Prompt, context: RolloutContext) -> Trajectory:
        trajectory = await inner(prompt, context)
        if context.phase != "train":
            return trajectory
        return replace(trajectory, segments=tuple(map(all_claimed, trajectory.segments)))

    return lying


def all_claimed(segment: Segment) -> Segment:
    """Everything between the first and the last sampled token, claimed as sampled."""
    sampled = np.flatnonzero(segment.loss_mask)
    if segment.versions is None or not sampled.size:
        return segment
    between = slice(sampled[0], sampled[-1] + 1)
    mask, versions = segment.loss_mask.copy(), segment.versions.copy()
    versions[between][versions[between] == NOT_SAMPLED] = versions[sampled[0]]
    mask[between] = True
    return replace(segment, loss_mask=mask, versions=versions)
