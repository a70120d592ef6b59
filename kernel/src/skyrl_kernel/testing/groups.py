"""Judged trajectories for the tests of algorithms."""

from collections.abc import Sequence

import numpy as np

from skyrl_kernel.records import (
    Prompt,
    Reward,
    Scored,
    Scores,
    Segment,
    StopReason,
    Trajectory,
    Turn,
)


def judged_group(rewards: Sequence[Sequence[float]], *, num_segments: int = 1) -> list[Scored]:
    """Trajectories of one prompt, which differ in nothing that an algorithm reads but the rewards.

    Args:
        rewards: Of each turn of each trajectory. A turn is two trained tokens behind
            one that is not; the prompt is two.
        num_segments: Token rows of each trajectory, all alike.

    Example: one trajectory of one turn.
        >>> (one,) = judged_group([[1.0]])
        >>> one.trajectory.segments[0].loss_mask.tolist(), one.total_reward
        ([False, False, False, True, True], 1.0)
    """
    prompt = Prompt(uid="0:0", messages=(), env_class="any")
    members = []
    for sample, turns in enumerate(rewards):
        mask = np.array([False, False] + [False, True, True] * len(turns))
        count = len(mask)
        rng = np.random.default_rng(sample)
        segment = Segment(
            tokens=rng.integers(0, 50, count).astype(np.int32),
            num_prompt_tokens=2,
            loss_mask=mask,
            logprobs=np.where(mask, -0.5, 0).astype(np.float32),
            versions=np.where(mask, 0, -1).astype(np.int32),
        )
        zeros = np.zeros(count, dtype=np.float32)
        scores = Scores(
            old_logprobs=segment.logprobs,
            ref_logprobs=segment.logprobs,
            teacher_logprobs=segment.logprobs,
            values=zeros,
        )
        trajectory = Trajectory(
            prompt=prompt,
            sample=sample,
            segments=(segment,) * num_segments,
            turns=tuple(
                Turn(segment=num_segments - 1, start=3 * i + 3, stop=3 * i + 5, reward=r, action="")
                for i, r in enumerate(turns)
            ),
            stop_reason=StopReason.STOP,
            reward=Reward(turns=tuple(turns)),
        )
        members.append(Scored(trajectory=trajectory, scores=(scores,) * num_segments))
    return members
