"""Plays and judges groups: many trajectories at a time, one failure costs one trajectory."""

import asyncio
from collections.abc import Callable, Sequence
from functools import partial

from skyrl_kernel.errors import FailureKind, PluginError, SkyrlError, TrajectoryError
from skyrl_kernel.protocols import (
    Engine,
    Generate,
    RewardFn,
    RolloutContext,
    Streams,
    Tokenizer,
)
from skyrl_kernel.records import (
    Failure,
    Group,
    Phase,
    Prompt,
    Reward,
    Sampling,
    Trajectory,
)
from skyrl_kernel.rng import derive_seeds
from skyrl_kernel.rollout.asking import Seat, StreamingSeat
from skyrl_kernel.rollout.checks import check_rewards, check_tokens, check_trajectory
from skyrl_kernel.rollout.deadline import CallTimeout
from skyrl_kernel.rollout.env_host import EnvHost
from skyrl_kernel.rollout.in_place import InPlace
from skyrl_kernel.rollout.lockstep import Lockstep, LockstepSeat
from skyrl_kernel.rollout.workers import Workers

Attribute = Callable[[Exception, str, int | None], PluginError]
"""(exception, hook, step) → who raised it."""


class Rollouts:
    """Turns prompts into judged groups.

    Args:
        generate: Stage 1.
        reward: Stage 2.
        engine: Generates.
        tokenizer: The policy's.
        envs: Makes envs.
        attribute: Finds the plugin behind an exception.
        seed: ``trainer.seed``.
        max_prompt_tokens: ``trainer.max_prompt_length``.
        max_input_tokens: The longest row that may be continued.
        reward_timeout_s: Deadline of the reward stage for one group.
        request_timeout_s: Deadline of one call to the engine; None where the engine keeps one itself.
        on_progress: Called with 1 for each finished trajectory.
    """

    def __init__(
        self,
        *,
        generate: Generate,
        reward: RewardFn,
        engine: Engine,
        tokenizer: Tokenizer,
        envs: EnvHost,
        attribute: Attribute,
        seed: int,
        max_prompt_tokens: int,
        max_input_tokens: int,
        reward_timeout_s: float,
        request_timeout_s: float | None,
        on_progress: Callable[[int], None] = lambda count: None,
    ) -> None:
        self._generate = generate
        self._reward = reward
        self._engine = engine
        self._tokenizer = tokenizer
        self._envs = envs
        self._attribute = attribute
        self._seed = seed
        self._max_prompt_tokens = max_prompt_tokens
        self._max_input_tokens = max_input_tokens
        self._reward_timeout_s = reward_timeout_s
        self._workers = Workers(4, "skyrl-reward")
        self._judges_in_place = getattr(reward, "instant", False) and InPlace.is_possible()
        self._request_timeout_s = request_timeout_s
        self._lockstep = Lockstep(engine, request_timeout_s) if engine.lockstep else None
        self._place = 0
        self.on_progress = on_progress

    def start(
        self, prompt: Prompt, *, index: int, step: int, size: int, phase: Phase, sampling: Sampling
    ) -> "asyncio.Task[Group]":
        """Begin one group. Groups begun without an ``await`` between share their rounds.

        Args:
            prompt: What to roll out.
            index: The group's number; with the phase it keys all random numbers.
            step: The step in progress, for failure records.
            size: Trajectories.
            phase: ``train`` or ``eval``.
            sampling: How completions are sampled.
        """
        seats = [self._seat() for _ in range(size)]
        seeds = derive_seeds(self._seed, phase, index, count=size)
        contexts = [
            RolloutContext(
                phase=phase,
                sample=sample,
                seed=seed,
                sampling=sampling,
                engine=seat,
                tokenizer=self._tokenizer,
                host_env=partial(self._envs.host, step_aside=seat.step_aside),
                max_prompt_tokens=self._max_prompt_tokens,
                max_input_tokens=self._max_input_tokens,
                max_turns=self._envs.max_turns,
            )
            for sample, (seat, seed) in enumerate(zip(seats, seeds, strict=True))
        ]
        seated = list(zip(contexts, seats, strict=True))
        return asyncio.create_task(self._group(prompt, index, step, seated))

    async def close(self) -> None:
        """End envs and threads."""
        self._workers.close()
        await self._envs.close()

    def _seat(self) -> Seat | LockstepSeat:
        if self._lockstep is None:
            seat = StreamingSeat if isinstance(self._engine, Streams) else Seat
            return seat(self._engine, self._request_timeout_s)
        self._place += 1
        return self._lockstep.enter(self._place)

    async def _group(
        self,
        prompt: Prompt,
        index: int,
        step: int,
        seated: Sequence[tuple[RolloutContext, Seat | LockstepSeat]],
    ) -> Group:
        played, failures = self._sound(await self._play_all(prompt, step, seated), step)
        judged, unjudged = await self._judge(played, step)
        return Group(
            index=index,
            prompt=prompt,
            trajectories=tuple(judged),
            failures=(*failures, *unjudged),
        )

    async def _play_all(
        self,
        prompt: Prompt,
        step: int,
        seated: Sequence[tuple[RolloutContext, Seat | LockstepSeat]],
    ) -> list[Trajectory | Failure]:
        """Play side by side; what ends the run is raised at once.

        As `asyncio.gather` does it, but the loop is not called back for each.
        """
        loop = asyncio.get_running_loop()
        all_ended: asyncio.Future[None] = loop.create_future()
        results: list[Trajectory | Failure | None] = [None] * len(seated)
        left = len(seated)

        async def play(place: int, context: RolloutContext, seat: Seat | LockstepSeat) -> None:
            nonlocal left
            try:
                try:
                    results[place] = trajectory = await self._generate(prompt, context)
                    check_trajectory(trajectory, prompt, context.sample)
                except Exception as error:
                    results[place] = self._failure(error, "generate", prompt, context.sample, step)
                finally:
                    seat.leave()
                    self.on_progress(1)
                left -= 1
                if not left and not all_ended.done():
                    all_ended.set_result(None)
            except BaseException as error:
                if isinstance(error, asyncio.CancelledError):
                    all_ended.cancel()
                elif not all_ended.done():
                    all_ended.set_exception(error)
                if not isinstance(error, Exception):
                    raise

        tasks = [
            loop.create_task(play(place, context, seat))
            for place, (context, seat) in enumerate(seated)
        ]
        try:
            await all_ended
        except BaseException as error:
            for task in tasks:
                task.cancel()
            if isinstance(error, asyncio.CancelledError):
                await asyncio.wait(tasks)  # their envs are closed first
            raise
        return [result for result in results if result is not None]

    def _sound(
        self, results: Sequence[Trajectory | Failure], step: int
    ) -> tuple[list[Trajectory], list[Failure]]:
        """The trajectories that may be trained on, and the failures, new ones last."""
        played = [result for result in results if isinstance(result, Trajectory)]
        failures = [result for result in results if isinstance(result, Failure)]
        problems = check_tokens(played)
        if problems is None:
            return played, failures
        failures += [
            self._failure(problem, "generate", one.prompt, one.sample, step)
            for one, problem in zip(played, problems, strict=True)
            if problem is not None
        ]
        return [
            one for one, problem in zip(played, problems, strict=True) if problem is None
        ], failures

    async def _judge(
        self, played: Sequence[Trajectory], step: int
    ) -> tuple[list[Trajectory], list[Failure]]:
        """Judge the group at once; if that fails, one by one, to lose only what must be lost."""
        if not played:
            return [], []
        try:
            rewards = await self._rewards(played)
        except Exception as error:
            is_late = isinstance(error, TrajectoryError) and error.kind is FailureKind.TIMEOUT
            if is_late or len(played) == 1:  # asking a late one again would multiply the wait
                return [], [
                    self._failure(error, "reward", one.prompt, one.sample, step) for one in played
                ]
            alone = [await self._judge([trajectory], step) for trajectory in played]
            return [one for kept, _ in alone for one in kept], [
                f for _, lost in alone for f in lost
            ]
        return [
            trajectory.judged(reward) for trajectory, reward in zip(played, rewards, strict=True)
        ], []

    async def _rewards(self, played: Sequence[Trajectory]) -> Sequence[Reward]:
        timeout_s = self._reward_timeout_s
        try:
            if self._judges_in_place:
                rewards = self._envs.in_place.call(timeout_s, self._reward, played)
            else:
                rewards = await self._workers.call(lambda: self._reward(played), timeout_s)
        except CallTimeout as error:
            raise TrajectoryError(
                FailureKind.TIMEOUT, f"the reward stage gave {error} (generator.reward_timeout_s)"
            ) from error
        return check_rewards(rewards, played)

    def _failure(
        self, error: Exception, hook: str, prompt: Prompt, sample: int, step: int
    ) -> Failure:
        if isinstance(error, TrajectoryError):
            kind, plugin, message = error.kind, error.plugin, error.message
        elif isinstance(error, SkyrlError):
            raise error
        else:
            owner = self._attribute(error, hook, step)
            kind, plugin, message = FailureKind.INFRASTRUCTURE, owner.plugin, str(owner)
        return Failure(
            step=step, uid=prompt.uid, sample=sample, kind=kind, plugin=plugin, message=message
        )
