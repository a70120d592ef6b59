"""The engine: a Hugging Face model in this process, its own or the trainer's."""

import asyncio
import contextlib
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel

from skyrl_kernel.errors import FailureKind, TrajectoryError, WeightSyncError
from skyrl_kernel.records import Completion, FloatArray, GenerateRequest, IntArray
from skyrl_kernel.torch import row_logprobs
from skyrl_transformers.decode import Counters, Decoding, in_order
from skyrl_transformers.loading import default_device, load_causal_lm
from skyrl_transformers.stopping import StopRules
from skyrl_transformers.tokenizer import HuggingFaceTokenizer
from skyrl_transformers.update import WeightUpdate

_MAX_LOGITS = 2**27
"""Logits that `TransformersEngine.logprobs` computes at once: half a GiB in float32."""
_POLL_S = 0.01
"""How often a paused engine looks whether it may go on."""


class TransformersEngine:
    """Keeps the `skyrl_kernel.protocols.Engine` protocol.

    It computes in the caller's thread and gives way to other tasks after every
    token, so that `abort`, deadlines and Ctrl-C take effect.

    Args:
        model: A Hugging Face directory. Its weights are read when they are first
            needed: never, if `share` comes before.
        max_rows: Most completions decoded together.
        bf16: Compute in bfloat16; the weights stay float32, as the trainer's.
    """

    lockstep = True

    def __init__(self, model: Path, *, max_rows: int = 1024, bf16: bool = False) -> None:
        self.version = 0
        self.counters = Counters()
        self._path = model
        self._max_rows = max_rows
        self._bf16 = bf16
        self._module: PreTrainedModel | None = None
        self._is_shared = False
        self._tokenizer: HuggingFaceTokenizer | None = None
        self._update: WeightUpdate | int | None = None
        self._is_paused = False
        self._aborts = 0

    @property
    def prompt_tokens_computed(self) -> int:
        """Prompt tokens that went through the model so far; equal prompts of a call count once."""
        return self.counters.prompt_tokens_computed

    @property
    def tokens_generated(self) -> int:
        """Tokens sampled so far."""
        return self.counters.tokens_generated

    def share(self, module: PreTrainedModel) -> None:
        """Generate with this module, a trainer's, instead of an own copy of the weights.

        The module's weights are always the newest, so an update brings no
        tensors: `begin_update` and `finish_update` only move `version`.
        """
        self._module, self._is_shared = module, True

    async def generate(self, requests: Sequence[GenerateRequest]) -> list[Completion]:
        """Complete every request, in order; equal prompts are computed once.

        A completion also ends, by ``length``, where the row has as many tokens
        as the model has positions. At temperature 0 the log-probs are those of
        temperature 1.

        Raises:
            ValueError: A request has no tokens.
            TrajectoryError: One has more tokens than the model has positions.
            NonFiniteError: The model computes NaN or infinity.
        """
        if any(len(request.tokens) == 0 for request in requests):
            raise ValueError("a request has no tokens; every prompt needs at least one")
        self._refuse_long(max((len(request.tokens) for request in requests), default=0))
        aborts = self._aborts
        results: dict[int, Completion] = {}
        for numbers in in_order(requests, self._max_rows):
            completions = await self._decode([requests[i] for i in numbers], aborts)
            results.update(zip(numbers, completions, strict=True))
        return [results[i] for i in range(len(requests))]

    async def _decode(self, requests: list[GenerateRequest], aborts: int) -> list[Completion]:
        module, tokenizer = self._weights(), self._text()
        limits = np.array([self._room(request) for request in requests], dtype=np.int64)
        rules = StopRules(
            [request.sampling for request in requests],
            tokenizer.eos_token_ids,
            limits,
            tokenizer.decode,
        )
        decoding = Decoding(module, requests, rules, int(limits.max()), self.counters)
        while decoding.live.size and await self._may_go_on(aborts):
            with self._precision(module):
                decoding.step(self.version)
        return decoding.completions()

    async def _may_go_on(self, aborts: int) -> bool:
        """Give way to other tasks, wait while paused; False after an `abort`."""
        await asyncio.sleep(0)
        while self._is_paused and self._aborts == aborts:
            await asyncio.sleep(_POLL_S)
        return self._aborts == aborts

    async def logprobs(self, rows: Sequence[IntArray], *, temperature: float) -> list[FloatArray]:
        """[T] log-prob in nats of each row's tokens given those before; 0 at index 0."""
        module = self._weights()

        def forward(ids: Tensor) -> Tensor:
            logits: Tensor = module(input_ids=ids, use_cache=False).logits
            return logits

        with self._precision(module):
            return row_logprobs(
                forward,
                rows,
                temperature=temperature,
                device=module.device,
                max_rows=self._max_rows,
                max_tokens=_MAX_LOGITS // module.config.get_text_config().vocab_size,
            )

    async def abort(self) -> None:
        """End all running calls; what they have sampled returns with ``finish_reason="abort"``."""
        self._aborts += 1

    async def pause(self) -> None:
        """Stop after the current token; running calls wait."""
        self._is_paused = True

    async def resume(self) -> None:
        """Let waiting calls go on, with the weights that are there now."""
        self._is_paused = False

    async def begin_update(self, version: int) -> None:
        """Get ready for the weights of ``version``; an update begun before is forgotten.

        Raises:
            WeightSyncError: The engine has newer weights.
        """
        self._update = None
        if version < self.version:
            raise WeightSyncError(
                f"an update to policy version {version} was begun, and the engine has version "
                f"{self.version} already; versions never go back"
            )
        self._update = version if self._is_shared else WeightUpdate(self._weights(), version)

    async def apply_update(self, weights: Iterable[tuple[str, Tensor]]) -> None:
        """Receive some or all tensors, by Hugging Face name.

        Raises:
            WeightSyncError: No update was begun, a tensor does not fit, or the
                engine shares the trainer's module. The update is over; the old
                weights stay.
        """
        update, self._update = self._update, None
        if self._is_shared:
            raise WeightSyncError(
                "tensors were sent to an engine that shares the trainer's module: it has them "
                "already; set generator.inference_engine.weight_sync_backend=auto"
            )
        if not isinstance(update, WeightUpdate):
            raise WeightSyncError(
                "weights arrived before an update was begun, or after one was refused; "
                "call begin_update first"
            )
        update.receive(weights)
        self._update = update

    async def finish_update(self, version: int) -> None:
        """Commit.

        Raises:
            WeightSyncError: Tensors are missing, or ``version`` is not the one
                begun. The update is over; the old weights stay.
        """
        update, self._update = self._update, None
        begun = update.version if isinstance(update, WeightUpdate) else update
        if begun != version:
            found = "none was begun" if begun is None else f"version {begun} was begun"
            raise WeightSyncError(
                f"an update to policy version {version} was finished, but {found}. The engine "
                f"stays at version {self.version}; begin and finish with the same version"
            )
        if isinstance(update, WeightUpdate):
            update.commit()
        self.version = version

    async def close(self) -> None:
        """End running calls and let go of the weights."""
        await self.abort()
        self._module, self._update, self._is_shared = None, None, False

    def _weights(self) -> PreTrainedModel:
        if self._module is None:
            self._module = load_causal_lm(self._path, default_device())
        return self._module

    def _text(self) -> HuggingFaceTokenizer:
        if self._tokenizer is None:
            self._tokenizer = HuggingFaceTokenizer(self._path)
        return self._tokenizer

    def _room(self, request: GenerateRequest) -> int:
        """Most tokens of the completion, at least 1."""
        positions = self._positions()
        if positions is None:
            return request.sampling.max_tokens
        return max(1, min(request.sampling.max_tokens, positions - len(request.tokens)))

    def _positions(self) -> int | None:
        """Most tokens of a row; None if the model does not say."""
        config = self._weights().config.get_text_config()
        positions: int | None = getattr(config, "max_position_embeddings", None)
        return positions

    def _refuse_long(self, tokens: int) -> None:
        positions = self._positions() if tokens else None
        if positions is not None and tokens > positions:
            raise TrajectoryError(
                FailureKind.INFRASTRUCTURE,
                f"the transformers engine was asked to continue {tokens} tokens, and the model has "
                f"{positions} positions; lower generator.max_input_length",
                "transformers",
            )

    def _precision(self, module: PreTrainedModel) -> contextlib.AbstractContextManager[object]:
        if not self._bf16:
            return contextlib.nullcontext()
        return torch.autocast(module.device.type, torch.bfloat16)
