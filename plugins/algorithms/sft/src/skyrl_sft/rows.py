"""The stage `generate` of SFT: a row's prompt and response, in the tokens that an engine would see.

The response stands in the row's column ``response``. It is tokenised as a
completion is sampled: after the template's generation prompt, ended by the
end-of-turn token. Only it is trained on.
"""

import numpy as np

from skyrl_kernel.errors import FailureKind, TrajectoryError
from skyrl_kernel.hookspecs import hookimpl
from skyrl_kernel.protocols import Generate, RewardFn, RolloutContext
from skyrl_kernel.records import Prompt, Reward, Segment, StopReason, Trajectory


@hookimpl
def generate(name: str) -> Generate | None:
    """The stage of ``generator.rollout=sft``."""
    return read_row if name == "sft" else None


@hookimpl
def reward(name: str) -> RewardFn | None:
    """The stage of ``generator.reward=sft``: nothing was sampled, so nothing is judged."""
    return (
        (lambda trajectories: [Reward(turns=()) for _ in trajectories]) if name == "sft" else None
    )


async def read_row(prompt: Prompt, context: RolloutContext) -> Trajectory:
    """One row as a trajectory without turns.

    Raises:
        TrajectoryError: The row has no ``response``.
    """
    response = prompt.extras.get("response")
    if not isinstance(response, str):
        raise TrajectoryError(
            FailureKind.TASK,
            f"row {prompt.uid} has no text in the column 'response'; its columns are: "
            f"{', '.join(sorted(prompt.extras)) or 'prompt'}",
            "sft",
        )
    tokenizer = context.tokenizer
    start = tokenizer.encode_chat(prompt.messages, add_generation_prompt=True)
    end = np.array([min(tokenizer.eos_token_ids)], dtype=np.int32)
    answer = np.concatenate([tokenizer.encode(response), end])
    mask = np.zeros(len(start) + len(answer), dtype=np.bool_)
    mask[len(start) :] = True
    return Trajectory(
        prompt=prompt,
        sample=context.sample,
        segments=(
            Segment(
                tokens=np.concatenate([start, answer]).astype(np.int32),
                num_prompt_tokens=len(start),
                loss_mask=mask,
            ),
        ),
        turns=(),
        stop_reason=StopReason.STOP,
    )
