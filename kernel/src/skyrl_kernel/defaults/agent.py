"""The agent loop: prompt, completion, env's reply, and again, in tokens.

What was sampled is kept as it was sampled; only the env's replies are tokenised.
Completions have ``loss_mask`` True, everything else False.
"""

import time
from collections.abc import Sequence

import numpy as np

from skyrl_kernel.env import EnvStep
from skyrl_kernel.errors import FailureKind, ModelError, TrajectoryError
from skyrl_kernel.hookspecs import hookimpl
from skyrl_kernel.protocols import RolloutContext, Tokenizer
from skyrl_kernel.records import (
    NOT_SAMPLED,
    Completion,
    GenerateRequest,
    IntArray,
    Message,
    Prompt,
    Segment,
    StopReason,
    Trajectory,
    Turn,
)
from skyrl_kernel.rng import derive_seed

_BASE: tuple[Message, ...] = (
    {"role": "user", "content": "Hello."},
    {"role": "assistant", "content": "Hello."},
)
"""A conversation whose only use is to see how the template continues after an assistant turn."""


@hookimpl
def generate(name: str) -> "Agent | None":
    """The agent loop."""
    return Agent() if name == "agent" else None


class Agent:
    """Plays episodes; has no state of its own."""

    async def __call__(self, prompt: Prompt, context: RolloutContext) -> Trajectory:
        """Play one episode.

        Raises:
            TrajectoryError: The env or the engine failed, or the env's prompt is
                longer than the limit.
        """
        started = time.perf_counter()
        row = _Row()
        turns: list[Turn] = []
        env = context.host_env(prompt)
        timings = {"llm": 0.0, "env": 0.0}
        try:
            messages = await env.init()
            timings["env"] += time.perf_counter() - started
            tokens = context.tokenizer.encode_chat(messages, add_generation_prompt=True)
            if len(tokens) > context.max_prompt_tokens:
                raise TrajectoryError(
                    FailureKind.TASK,
                    f"env '{prompt.env_class}' made a prompt of {len(tokens)} tokens; "
                    f"trainer.max_prompt_length is {context.max_prompt_tokens}",
                    prompt.env_class,
                )
            row.add(tokens)
            num_prompt_tokens = len(tokens)
            while True:
                began = time.perf_counter()
                completion = await self._complete(row.tokens, len(turns), context)
                timings["llm"] += time.perf_counter() - began
                start = row.length
                action = context.tokenizer.decode(completion.tokens)
                began = time.perf_counter()
                step = await env.step(action)
                timings["env"] += time.perf_counter() - began
                processed = step.get("postprocessed_action")
                if processed is None:
                    row.add_completion(completion)
                else:  # not what was sampled, so not to be trained on
                    row.add(context.tokenizer.encode(processed))
                turns.append(
                    Turn(
                        segment=0,
                        start=start,
                        stop=row.length,
                        reward=step["reward"],
                        action=action if processed is None else processed,
                        metadata=step["metadata"],
                    )
                )
                stop_reason = _why_stop(step, completion, len(turns), context)
                if stop_reason is not None:
                    break
                reply = _reply_tokens(step["observations"], row.tokens[-1], context.tokenizer)
                if row.length + len(reply) > context.max_input_tokens:
                    stop_reason = StopReason.LENGTH
                    break
                row.add(reply)
            began = time.perf_counter()
            env_metrics = await env.finish()
            timings["env"] += time.perf_counter() - began
        except BaseException:
            await env.discard()
            raise
        timings["total"] = time.perf_counter() - started
        return Trajectory(
            prompt=prompt,
            sample=context.sample,
            segments=(row.segment(num_prompt_tokens),),
            turns=tuple(turns),
            stop_reason=stop_reason,
            env_metrics=env_metrics,
            timings=timings,
        )

    async def _complete(self, tokens: IntArray, turn: int, context: RolloutContext) -> Completion:
        request = GenerateRequest(
            tokens=tokens,
            sampling=context.sampling,
            seed=derive_seed(context.seed, turn),
        )
        (completion,) = await context.engine.generate([request])
        return completion


class _Row:
    """A token row under construction."""

    def __init__(self) -> None:
        self.tokens: IntArray = np.zeros(0, dtype=np.int32)
        self._sampled: list[tuple[int, Completion]] = []
        """Completions and where they start."""

    @property
    def length(self) -> int:
        return len(self.tokens)

    def add(self, tokens: IntArray) -> None:
        """Tokens that the policy did not sample."""
        tokens = tokens.astype(np.int32, copy=False)
        self.tokens = np.concatenate((self.tokens, tokens)) if self.length else tokens

    def add_completion(self, completion: Completion) -> None:
        """Tokens that it did."""
        self._sampled.append((self.length, completion))
        self.add(completion.tokens)

    def segment(self, num_prompt_tokens: int) -> Segment:
        loss_mask = np.zeros(self.length, dtype=np.bool_)
        logprobs = np.zeros(self.length, dtype=np.float32)
        versions = np.full(self.length, NOT_SAMPLED, dtype=np.int32)
        for start, completion in self._sampled:
            place = slice(start, start + len(completion.tokens))
            loss_mask[place] = True
            logprobs[place] = completion.logprobs
            versions[place] = completion.versions
        return Segment(
            tokens=self.tokens,
            num_prompt_tokens=num_prompt_tokens,
            loss_mask=loss_mask,
            logprobs=logprobs,
            versions=versions,
        )


def _why_stop(
    step: EnvStep, completion: Completion, turns: int, context: RolloutContext
) -> StopReason | None:
    """The reason to end after this turn, or None to go on."""
    if completion.finish_reason == "abort":
        return StopReason.ABORT
    if step["done"]:
        return StopReason.LENGTH if completion.finish_reason == "length" else StopReason.STOP
    if context.max_turns is not None and turns >= context.max_turns:
        return StopReason.MAX_TURNS
    return None


def _reply_tokens(observations: Sequence[Message], last: int, tokenizer: Tokenizer) -> IntArray:
    """Tokens between a completion and the next one.

    The template is applied to a fixed conversation with and without the reply;
    what the reply adds after the assistant's end-of-turn token is what stands
    between two completions. A completion that was cut off before that token gets
    it first, so that the conversation stays well-formed.
    """
    base = tokenizer.encode_chat(_BASE, add_generation_prompt=False)
    ends = [place for place, token in enumerate(base) if int(token) in tokenizer.eos_token_ids]
    whole = tokenizer.encode_chat([*_BASE, *observations], add_generation_prompt=True)
    end = ends[-1] + 1 if ends else len(base)
    if not np.array_equal(base[:end], whole[:end]):
        raise ModelError(
            "the model's chat template rewrites earlier turns when a message follows, so several "
            "turns cannot be kept token by token; use a template that only appends, "
            "or generator.max_turns=1"
        )
    reply = whole[end:]
    if ends and int(last) not in tokenizer.eos_token_ids:
        reply = np.concatenate([base[ends[-1] : end], reply])
    return reply
