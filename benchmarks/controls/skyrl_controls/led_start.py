"""The third line: the start, led into its best answering style.

A model may fail because it answers in a bad style that it could leave. Here
every answer is made to begin as a worked example does, with ``2*5=`` for
272 * 5, and the model writes the rest. What the start gains by that is style.
"""

from collections.abc import Generator, Sequence
from dataclasses import replace

import numpy as np

from skyrl_kernel.errors import ConfigError
from skyrl_kernel.hookspecs import hookimpl
from skyrl_kernel.protocols import Generate, Generates, RolloutContext
from skyrl_kernel.records import Completion, GenerateRequest, IntArray, Prompt, Trajectory


@hookimpl(wrapper=True)
def generate() -> Generator[None, Generate, Generate]:
    """Play with an engine that begins every completion alike."""
    inner = yield

    async def led(prompt: Prompt, context: RolloutContext) -> Trajectory:
        if context.phase == "train":
            raise ConfigError(
                "led_start puts words into the policy's mouth, so there is nothing to train on; "
                "use it in evaluation only"
            )
        start = context.tokenizer.encode(first_words(str(prompt.messages[-1]["content"])))
        return await inner(prompt, replace(context, engine=LedEngine(context.engine, start)))

    return led


def first_words(problem: str) -> str:
    """How a worked example of the problem begins.

    Example:
        >>> first_words("272 * 5")
        '2*5='
    """
    a, b = problem.split(" * ")
    return f"{a[-1]}*{b}="


class LedEngine:
    """An engine whose completions all begin with the same tokens."""

    def __init__(self, engine: Generates, start: IntArray) -> None:
        self._engine = engine
        self._start = start

    async def generate(self, requests: Sequence[GenerateRequest]) -> list[Completion]:
        """The given tokens, and what the engine makes of them."""
        completions = await self._engine.generate([self._begun(request) for request in requests])
        return [self._whole(completion) for completion in completions]

    def _begun(self, request: GenerateRequest) -> GenerateRequest:
        left = request.sampling.max_tokens - len(self._start)
        return replace(
            request,
            tokens=np.concatenate([request.tokens, self._start]).astype(np.int32),
            sampling=replace(request.sampling, max_tokens=left),
        )

    def _whole(self, completion: Completion) -> Completion:
        count = len(self._start)
        return replace(
            completion,
            tokens=np.concatenate([self._start, completion.tokens]).astype(np.int32),
            logprobs=np.concatenate([np.zeros(count, np.float32), completion.logprobs]),
            versions=np.concatenate(
                [np.repeat(completion.versions[:1], count), completion.versions]
            ),
        )
