"""One episode of a `ScriptedEnv`, the model saying given texts: for tests of agent loops."""

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from skyrl_kernel.defaults.agent import Agent
from skyrl_kernel.protocols import Generate, RolloutContext, Tokenizer
from skyrl_kernel.records import Completion, GenerateRequest, Prompt, Sampling, Trajectory
from skyrl_kernel.rollout.env_host import EnvHost, MakeEnv
from skyrl_kernel.rollout.env_process import EnvProcessPool
from skyrl_kernel.testing.scripted.env import ScriptedEnv
from skyrl_kernel.testing.scripted.tokenizer import CharTokenizer

NO_LIMIT = 10**9


class Says:
    """An engine that says one text after the other, each token at its own version.

    A text is ended by the tokenizer's end id, unless a stop string or the limit
    ends it first. Token i of completion n has version 10 n + i (n from 1) and a
    log-prob between -1 and -2.

    Args:
        texts: What it says.
        tokenizer: Default: a `CharTokenizer`.
    """

    def __init__(self, texts: Sequence[str], tokenizer: Tokenizer | None = None) -> None:
        self.texts = list(texts)
        self.tokenizer = tokenizer or CharTokenizer()
        self.requests: list[GenerateRequest] = []
        """Every request so far."""

    async def generate(self, requests: Sequence[GenerateRequest]) -> list[Completion]:
        """Say the next text."""
        (request,) = requests
        text = self.texts[len(self.requests)]
        self.requests.append(request)
        ends = [text.index(stop) + len(stop) for stop in request.sampling.stop if stop in text]
        tokens = self.tokenizer.encode(text[: min(ends)] if ends else text)
        if not ends:
            tokens = np.append(tokens, np.int32(min(self.tokenizer.eos_token_ids)))
        is_cut = len(tokens) > request.sampling.max_tokens
        tokens = tokens[: request.sampling.max_tokens]
        first = 10 * len(self.requests)
        return [
            Completion(
                tokens=tokens,
                logprobs=np.linspace(-1, -2, len(tokens), dtype=np.float32),
                versions=np.arange(first, first + len(tokens), dtype=np.int32),
                finish_reason="length" if is_cut else "stop",
            )
        ]


def make_plain_env(name: str, extras: Mapping[str, Any], cap: int | None) -> ScriptedEnv:
    """A `ScriptedEnv` of the row alone."""
    return ScriptedEnv(extras, cap)


def play(
    texts: Sequence[str],
    row: Mapping[str, Any] | None = None,
    *,
    content: str = "x",
    engine: Says | None = None,
    tokenizer: Tokenizer | None = None,
    make: MakeEnv = make_plain_env,
    agent: Generate | None = None,
    **context: Any,
) -> Trajectory:
    """Play the episode.

    Args:
        texts: What the model says, turn by turn.
        row: Columns of the row; see `ScriptedEnv`.
        content: The user's message.
        engine: Instead of ``Says(texts, tokenizer)``.
        tokenizer: Default: a `CharTokenizer`.
        make: Makes the env.
        agent: Default: the kernel's agent loop in its default layout.
        context: Fields of the `RolloutContext`.
    """
    engine = engine or Says(texts, tokenizer)
    agent = agent or Agent()

    async def episode() -> Trajectory:
        host = EnvHost(
            make,
            EnvProcessPool(make_plain_env, 1),
            timeout_s=10,
            workers=2,
            max_turns=context.get("max_turns"),
        )
        try:
            return await agent(
                Prompt(
                    uid="7",
                    messages=[{"role": "user", "content": content}],
                    env_class="scripted",
                    extras=row or {},
                ),
                replace(
                    RolloutContext(
                        phase="train",
                        sample=3,
                        seed=11,
                        sampling=Sampling(max_tokens=64),
                        engine=engine,
                        tokenizer=engine.tokenizer,
                        host_env=host.host,
                        max_prompt_tokens=NO_LIMIT,
                        max_input_tokens=NO_LIMIT,
                        max_turns=None,
                    ),
                    **context,
                ),
            )
        finally:
            await host.close()

    return asyncio.run(episode())
