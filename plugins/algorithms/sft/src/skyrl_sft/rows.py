"""The stage `generate` of SFT: a row's prompt and response, in the tokens that an engine would see.

The response stands in the row's column ``response``. It is tokenised as a
completion is sampled: after the template's generation prompt, ended by the
end-of-turn token. Only it is trained on.
"""

from collections.abc import Sequence
from functools import lru_cache

import numpy as np

from skyrl_kernel.errors import FailureKind, ModelError, TrajectoryError
from skyrl_kernel.hookspecs import hookimpl
from skyrl_kernel.protocols import Generate, RewardFn, RolloutContext, Tokenizer
from skyrl_kernel.records import Message, Prompt, Reward, Segment, StopReason, Trajectory

NAME = "sft"


@hookimpl
def generate(name: str) -> Generate | None:
    """The stage of ``generator.rollout=sft``."""
    return read_row if name == NAME else None


@hookimpl
def reward(name: str) -> RewardFn | None:
    """The stage of ``generator.reward=sft``."""
    return no_reward if name == NAME else None


async def read_row(prompt: Prompt, context: RolloutContext) -> Trajectory:
    """One row as a trajectory without turns: nothing was sampled.

    Example: the prompt is ids 1-2, the generation prompt 3, the response 7 8,
    the end of turn 9. The segment is

        tokens    = [1, 2, 3, 7, 8, 9]
        loss_mask = [F, F, F, T, T, T]

    Raises:
        TrajectoryError: The row has no text in ``response``.
        ModelError: The tokenizer ends no turn.
    """
    response = prompt.extras.get("response")
    if not isinstance(response, str):
        raise TrajectoryError(
            FailureKind.TASK,
            f"row {prompt.uid} has no text in the column 'response', which SFT trains on; "
            f"beside its prompt it has: {', '.join(sorted(prompt.extras)) or 'nothing'}",
            NAME,
        )
    tokenizer = context.tokenizer
    start = tokenizer.encode_chat(prompt.messages, add_generation_prompt=True)
    end = end_of_turn(tokenizer)  # type: ignore[arg-type]  # mypy takes no protocol for hashable
    answer = [*tokenizer.encode(response), end]
    tokens = np.concatenate([start, answer]).astype(np.int32)
    return Trajectory(
        prompt=prompt,
        sample=context.sample,
        segments=(
            Segment(
                tokens=tokens,
                num_prompt_tokens=len(start),
                loss_mask=np.arange(len(tokens)) >= len(start),
            ),
        ),
        turns=(),
        stop_reason=StopReason.STOP,
    )


def no_reward(trajectories: Sequence[Trajectory]) -> list[Reward]:
    """Nothing was sampled, so nothing is judged."""
    return [Reward(turns=()) for _ in trajectories]


_ANSWERED: tuple[Message, ...] = (
    {"role": "user", "content": "Hello."},
    {"role": "assistant", "content": "Hello."},
)


@lru_cache(maxsize=8)
def end_of_turn(tokenizer: Tokenizer) -> int:
    """The id that the chat template puts after an assistant's turn.

    A model may stop at several ids (end of turn, end of text); the one to learn
    is the one that its template writes. A template that writes none leaves the
    choice if there is only one.

    Raises:
        ModelError: There is no such id, or no way to tell which.
    """
    stops = tokenizer.eos_token_ids
    written = tokenizer.encode_chat(_ANSWERED, add_generation_prompt=False)
    for token in reversed(written.tolist()):
        if token in stops:
            return int(token)
    if len(stops) == 1:
        return next(iter(stops))
    raise ModelError(
        "SFT ends every response with the model's end-of-turn token, but the chat template writes "
        f"none after an assistant's turn, and the tokenizer has {len(stops)} ids that end one "
        f"({sorted(stops)}); use a chat template that writes it, or name one eos_token_id in the "
        "model's generation_config.json"
    )
