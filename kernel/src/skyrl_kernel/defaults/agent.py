"""The agent loop: prompt, completion, env's reply, and again, in tokens.

What was sampled is kept as it was sampled; only the env's replies are tokenised.
Completions have ``loss_mask`` True, everything else False. How an episode is
laid out in token rows is `skyrl_kernel.token_rows`'s.
"""

import time
from functools import partial

from skyrl_kernel.chat_template import Template
from skyrl_kernel.config.generator import GeneratorConfig
from skyrl_kernel.env import EnvStep
from skyrl_kernel.errors import FailureKind, TrajectoryError
from skyrl_kernel.hookspecs import hookimpl
from skyrl_kernel.protocols import RolloutContext, Settings
from skyrl_kernel.records import (
    Completion,
    GenerateRequest,
    IntArray,
    Phase,
    Prompt,
    StopReason,
    Trajectory,
    Turn,
)
from skyrl_kernel.rng import derive_seed
from skyrl_kernel.token_rows import ConversationRow, MakeRows, MessageRow, StepRows


@hookimpl
def generate(name: str, settings: Settings) -> "Agent | None":
    """The agent loop, in the layout that ``generator`` asks for."""
    if name != "agent":
        return None
    config = settings[GeneratorConfig]
    return Agent(
        layout(config),
        logprobs={
            "train": config.sampling_params.logprobs is not None,
            "eval": config.eval_sampling_params.logprobs is not None,
        },
    )


def layout(config: GeneratorConfig) -> MakeRows:
    """How ``generator`` wants episodes laid out in token rows."""
    if config.step_wise_trajectories:
        return partial(StepRows, merge=config.merge_stepwise_output)
    if not config.use_conversation_multi_turn:
        return MessageRow
    return partial(
        ConversationRow, ends_stopped=config.append_eos_token_after_stop_str_in_multi_turn
    )


class Agent:
    """Plays episodes; has no state but what it found out about the chat template.

    Args:
        make_rows: The layout.
        logprobs: By phase, whether the sampler's log-probs are kept; default: in both.
    """

    def __init__(
        self, make_rows: MakeRows = ConversationRow, logprobs: dict[Phase, bool] | None = None
    ) -> None:
        self._make_rows = make_rows
        self._logprobs = logprobs or {"train": True, "eval": True}
        self._template: Template | None = None

    async def __call__(self, prompt: Prompt, context: RolloutContext) -> Trajectory:
        """Play one episode.

        Raises:
            TrajectoryError: The env or the engine failed, or the env's prompt is
                longer than the limit.
        """
        started = time.perf_counter()
        template = self._template
        if template is None or template.tokenizer is not context.tokenizer:
            template = self._template = Template(context.tokenizer)
        steps: list[tuple[EnvStep, str]] = []
        env = context.host_env(prompt)
        timings = {"llm": 0.0, "env": 0.0}
        try:
            messages = await env.init()
            timings["env"] += time.perf_counter() - started
            rows = self._make_rows(
                messages, template, self._logprobs[context.phase], context.max_input_tokens
            )
            if len(rows.tokens) > context.max_prompt_tokens:
                raise TrajectoryError(
                    FailureKind.TASK,
                    f"env '{prompt.env_class}' made a prompt of {len(rows.tokens)} tokens; "
                    f"trainer.max_prompt_length is {context.max_prompt_tokens}",
                    prompt.env_class,
                )
            while True:
                began = time.perf_counter()
                completion = await self._complete(rows.tokens, len(steps), context)
                timings["llm"] += time.perf_counter() - began
                action = context.tokenizer.decode(completion.tokens)
                began = time.perf_counter()
                step = await env.step(action)
                timings["env"] += time.perf_counter() - began
                processed = step.get("postprocessed_action")
                # An env may always hand one back: where it is what was sampled, nothing is replaced.
                is_sampled = processed is None or processed == action
                if processed is not None:
                    action = processed
                rows.add_turn(completion, action, is_sampled=is_sampled)
                steps.append((step, action))
                stop_reason = _why_stop(step, completion, len(steps), context)
                if stop_reason is not None:
                    break
                if not rows.add_reply(step["observations"]):
                    stop_reason = StopReason.LENGTH
                    break
            began = time.perf_counter()
            env_metrics = await env.finish()
            timings["env"] += time.perf_counter() - began
        except BaseException:
            await env.discard()
            raise
        segments = rows.close(is_cut=stop_reason in (StopReason.LENGTH, StopReason.ABORT))
        timings["total"] = time.perf_counter() - started
        return Trajectory(
            prompt=prompt,
            sample=context.sample,
            segments=segments,
            turns=tuple(
                [
                    Turn(
                        segment=row,
                        start=start,
                        stop=stop,
                        reward=step["reward"],
                        action=action,
                        metadata=step["metadata"],
                    )
                    for (row, start, stop), (step, action) in zip(rows.places, steps, strict=True)
                ]
            ),
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
