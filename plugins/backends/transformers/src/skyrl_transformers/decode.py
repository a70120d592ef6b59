"""Decodes a set of requests together, token by token.

    equal prompts → one prompt each → forward, padded right, no mask
                                      │ keys and values, once per request
    rows, aligned right  ←────────────┘
    loop: sample → record → finished rows leave → forward one token

Shapes: R requests, B rows still being decoded, U different prompts, V vocabulary.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby, islice

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from transformers import PreTrainedModel

from skyrl_kernel.errors import NonFiniteError
from skyrl_kernel.records import Completion, GenerateRequest
from skyrl_kernel.torch import right_pad
from skyrl_transformers.cache import RowCache, prompt_cache, right_aligned
from skyrl_transformers.noise import as_seed, uniform
from skyrl_transformers.sampler import Sampler, SamplingRows
from skyrl_transformers.stopping import StopRules

_FIRST_ROOM = 64
"""Tokens of completion for which the cache has room at first."""
_PROMPT_TOKENS = 16_384
"""Prompt tokens of one forward pass: bounds the memory of activations."""


@dataclass(kw_only=True, slots=True)
class Counters:
    """Work done since the engine was made."""

    prompt_tokens_computed: int = 0
    """Prompt tokens that went through the model, padding left out."""
    tokens_generated: int = 0
    """Tokens sampled."""


class Decoding:
    """Requests in progress. Call `step` until `live` is empty, then read `completions`.

    Args:
        module: A causal language model in eval mode.
        requests: Sorted so that equal prompts are neighbours: see `in_order`.
        rules: When each completion ends.
        limit: Most tokens of any completion.
        counters: Are counted up.
    """

    def __init__(
        self,
        module: PreTrainedModel,
        requests: Sequence[GenerateRequest],
        rules: StopRules,
        limit: int,
        counters: Counters,
    ) -> None:
        self._module = module
        self._device = module.get_input_embeddings().weight.device
        self._requests = requests
        self._rules = rules
        self._counters = counters
        self._lengths = np.array([len(request.tokens) for request in requests], dtype=np.int64)
        self._seeds = np.array([as_seed(request.seed) for request in requests], dtype=np.uint64)
        self._sampler = Sampler(
            SamplingRows.of([request.sampling for request in requests], self._device)
        )
        self._width = int(self._lengths.max())
        self._cache = RowCache(module.config, self._width + min(limit, _FIRST_ROOM))
        self._newest: Tensor | None = None
        self._hidden = torch.from_numpy(self._width - self._lengths).to(self._device)
        self._count = 0
        self._tokens = np.zeros((len(requests), limit), dtype=np.int32)
        self._logprobs = np.zeros((len(requests), limit), dtype=np.float32)
        self._versions = np.zeros((len(requests), limit), dtype=np.int32)
        self._counts = np.zeros(len(requests), dtype=np.int64)
        self._reasons: list[str] = ["abort"] * len(requests)
        self.live: NDArray[np.int64] = np.arange(len(requests))
        """[B] the request of each row still being decoded."""

    @torch.no_grad()
    def step(self, version: int) -> None:
        """Sample one token for each live row; rows that it finishes leave.

        Args:
            version: Policy version of the module's weights.
        """
        logits = self._compute_prompts() if self._newest is None else self._compute(self._newest)
        noise = uniform(self._seeds[self.live], self._lengths[self.live] + self._count)
        tokens, logprobs = self._sampler(logits, torch.from_numpy(noise).to(self._device))
        self._record(tokens, logprobs, version)
        self._newest = tokens
        stopped = self._rules.stopped(self.live, self._tokens, self._count)
        finished = stopped | self._rules.is_full(self.live, self._count)
        if finished.any():
            for row in np.flatnonzero(finished):
                self._reasons[self.live[row]] = "stop" if stopped[row] else "length"
            self._let_go(finished)

    def completions(self) -> list[Completion]:
        """What was sampled for each request; ``abort`` where a row was still live."""
        return [
            Completion(
                tokens=self._tokens[i, :count].copy(),
                logprobs=self._logprobs[i, :count].copy(),
                versions=self._versions[i, :count].copy(),
                finish_reason=reason,  # type: ignore[arg-type]
            )
            for i, (count, reason) in enumerate(zip(self._counts, self._reasons, strict=True))
        ]

    def _record(self, tokens: Tensor, logprobs: Tensor, version: int) -> None:
        values = logprobs.cpu().numpy()
        if not np.isfinite(values).all():
            row = int(np.flatnonzero(~np.isfinite(values))[0])
            raise NonFiniteError(
                f"the engine's logits are not finite at token {self._count} of a completion of "
                f"{self._lengths[self.live[row]]} prompt tokens (policy version {version}): the "
                "weights hold NaN or infinity, or the model overflows in this precision"
            )
        self._tokens[self.live, self._count] = tokens.cpu().numpy()
        self._logprobs[self.live, self._count] = values
        self._versions[self.live, self._count] = version
        self._count += 1
        self._counts[self.live] = self._count
        self._counters.tokens_generated += len(self.live)

    def _compute_prompts(self) -> Tensor:
        """[R, V] logits after each prompt; fills the cache."""
        prompts: list[NDArray[np.int32]] = []
        repeats: list[int] = []
        for _, same in groupby(self._requests, key=lambda request: request.tokens.tobytes()):
            members = list(same)
            prompts.append(members[0].tokens)
            repeats.append(len(members))
        logits, first_row = [], 0
        for batch in _within_budget([len(prompt) for prompt in prompts]):
            owners = torch.arange(len(batch)).repeat_interleave(
                torch.tensor([repeats[i] for i in batch])
            )
            last = self._compute_batch([prompts[i] for i in batch], owners, first_row)
            logits.append(last[owners.to(self._device)])
            first_row += len(owners)
        return torch.cat(logits)

    def _compute_batch(
        self, prompts: list[NDArray[np.int32]], owners: Tensor, first_row: int
    ) -> Tensor:
        """[U, V] logits after each of U prompts, whose states go to ``len(owners)`` rows."""
        ids = right_pad(prompts, self._device)
        lengths = torch.tensor([len(prompt) for prompt in prompts])
        ends, which = torch.unique(lengths - 1, return_inverse=True)
        states = prompt_cache(self._module.config)
        logits = self._module(
            input_ids=ids,
            past_key_values=states,
            use_cache=True,
            logits_to_keep=ends.to(self._device),
        ).logits
        take = right_aligned(lengths, owners, ids.shape[1])
        self._cache.fill(first_row, len(self._requests), self._width, states, take)
        self._counters.prompt_tokens_computed += int(lengths.sum())
        last: Tensor = logits[torch.arange(len(prompts)), which.to(self._device)]
        return last

    def _compute(self, tokens: Tensor) -> Tensor:
        """[B, V] logits after one more token per row."""
        place = self._width + self._count - 1
        seen = torch.arange(place + 1, device=self._device)
        is_padded = self._width > self._lengths[self.live].min()
        mask = seen >= self._hidden[:, None] if is_padded else None
        out = self._module(
            input_ids=tokens[:, None],
            attention_mask=mask,
            position_ids=(place - self._hidden)[:, None],
            past_key_values=self._cache,
            use_cache=True,
        )
        logits: Tensor = out.logits[:, -1]
        return logits

    def _let_go(self, finished: NDArray[np.bool_]) -> None:
        """Drop finished rows: the last rows move into their places."""
        remaining = int((~finished).sum())
        holes = np.flatnonzero(finished[:remaining])
        movers = remaining + np.flatnonzero(~finished[remaining:])
        order = np.arange(remaining)
        order[holes] = movers
        self.live = self.live[order]
        if remaining == 0:
            return
        rows = torch.from_numpy(order).to(self._device)
        self._cache.keep(
            torch.from_numpy(holes).to(self._device),
            torch.from_numpy(movers).to(self._device),
            remaining,
        )
        assert self._newest is not None
        self._newest, self._hidden = self._newest[rows], self._hidden[rows]
        self._sampler = self._sampler.take(rows)


def in_order(requests: Sequence[GenerateRequest], max_rows: int) -> list[list[int]]:
    """Numbers of the requests, in sets to decode together: similar lengths, equal prompts adjacent.

    A set holds at most ``max_rows``; equal prompts stay in one set if they fit.
    """

    def key(i: int) -> tuple[int, bytes]:
        return len(requests[i].tokens), requests[i].tokens.tobytes()

    sets: list[list[int]] = []
    for _, same in groupby(sorted(range(len(requests)), key=key), key=key):
        members = iter(list(same))
        group = list(islice(members, max_rows))
        if sets and len(sets[-1]) + len(group) <= max_rows:
            sets[-1].extend(group)
        else:
            sets.append(group)
        while group := list(islice(members, max_rows)):
            sets.append(group)
    return sets


def _within_budget(lengths: list[int]) -> list[list[int]]:
    """Consecutive numbers, each list within `_PROMPT_TOKENS` after padding or of one prompt."""
    batches: list[list[int]] = []
    for i, length in enumerate(lengths):
        if batches and (len(batches[-1]) + 1) * length <= _PROMPT_TOKENS:
            batches[-1].append(i)
        else:
            batches.append([i])
    return batches
