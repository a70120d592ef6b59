"""What a tokenizer's chat template writes between two completions."""

from collections.abc import Sequence
from functools import cached_property

import numpy as np

from skyrl_kernel.errors import ModelError
from skyrl_kernel.protocols import Tokenizer
from skyrl_kernel.records import IntArray, Message

_BASE: tuple[Message, ...] = (
    {"role": "user", "content": "Hello."},
    {"role": "assistant", "content": "Hello."},
)
"""A conversation whose only use is to see how the template continues after an assistant turn."""

_NOTHING: IntArray = np.zeros(0, dtype=np.int32)


class Template:
    """How a tokenizer's chat template continues after an assistant turn.

    The template is applied to a fixed conversation with and without a reply; what
    the reply adds after the assistant's end-of-turn token is what stands between
    two completions. Nothing is found out before it is needed: one turn needs none.

    Args:
        tokenizer: The policy's.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        self.tokenizer = tokenizer
        self.eos_token_ids = tokenizer.eos_token_ids

    @cached_property
    def _before(self) -> IntArray:
        """[T] the fixed conversation, up to its end-of-turn token."""
        base = self.tokenizer.encode_chat(_BASE, add_generation_prompt=False)
        ends = np.flatnonzero(np.isin(base, list(self.eos_token_ids)))
        return base[: int(ends[-1]) + 1] if ends.size else base

    @cached_property
    def end(self) -> IntArray:
        """[1] the end-of-turn token that the template writes; empty if it writes none."""
        last = self._before[-1:]
        return last if np.isin(last, list(self.eos_token_ids)).all() else _NOTHING

    def reply(self, observations: Sequence[Message]) -> IntArray:
        """[T] ids between an ended assistant turn and the next completion.

        Raises:
            ModelError: The template changes what stands before the reply.
        """
        whole = self.tokenizer.encode_chat([*_BASE, *observations], add_generation_prompt=True)
        if not np.array_equal(self._before, whole[: len(self._before)]):
            raise ModelError(
                "the model's chat template rewrites earlier turns when a message follows, so several "
                "turns cannot be kept token by token in one row; use a template that only appends, "
                "generator.step_wise_trajectories=true, or generator.max_turns=1"
            )
        return whole[len(self._before) :]
