"""What every test of an engine asks of a subclass."""

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

from skyrl_kernel.protocols import Engine
from skyrl_kernel.records import GenerateRequest, IntArray, Sampling

if TYPE_CHECKING:
    import torch

T = TypeVar("T")


class EngineSubject:
    """The engine under test."""

    tolerance = 1e-4
    """Most nats between two ways to the same log-prob, in float32."""
    has_random_sampling = True
    """False for an engine whose completions do not depend on the seed."""
    patience_s = 60.0
    """After so long a call hangs."""

    def make(self) -> Engine:
        """An engine at version 0 with its first weights, the same ones every time, in float32.

        It is closed after its use, and the next one is made.
        """
        raise NotImplementedError("override make()")

    def prompts(self) -> Sequence[IntArray]:
        """At least two different prompts, of different lengths."""
        raise NotImplementedError("override prompts()")

    def other_weights(self) -> "Iterable[tuple[str, torch.Tensor]]":
        """All tensors of another model of the same shape, by Hugging Face name."""
        raise NotImplementedError("override other_weights()")

    def _use(
        self, use: Callable[[Engine], Awaitable[T]], make: Callable[[], Engine] | None = None
    ) -> T:
        engine = (make or self.make)()

        async def main() -> T:
            try:
                return await use(engine)
            finally:
                await engine.close()

        return asyncio.run(main())

    def _request(
        self, prompt: IntArray, max_tokens: int, *, seed: int = 0, **sampling: Any
    ) -> GenerateRequest:
        settings = Sampling(max_tokens=max_tokens, **sampling)
        return GenerateRequest(tokens=prompt, sampling=settings, seed=seed)
