"""One run in progress: all that the loop calls, counts and writes.

The loop decides what happens when; a session is what it happens to. It is made
by `skyrl_kernel.assemble` and thrown away when the run ends.
"""

import asyncio
import contextlib
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, ParamSpec, TypeVar

from skyrl_kernel.admission import Admission
from skyrl_kernel.batch import Scorer
from skyrl_kernel.clock import Clock
from skyrl_kernel.config import TrainerConfig
from skyrl_kernel.credited import Credited
from skyrl_kernel.errors import (
    HookError,
    PluginError,
    SkyrlError,
    StopRun,
    WeightSyncError,
    is_disk_full,
)
from skyrl_kernel.feed import Feed
from skyrl_kernel.gpu_sharing import GpuSharing
from skyrl_kernel.plan import Plan
from skyrl_kernel.probe import FIRST_CHANGE, INTERVAL, coarser, probe
from skyrl_kernel.producer import Batch, Producer
from skyrl_kernel.progress import Progress
from skyrl_kernel.protocols import (
    Advantage,
    Counts,
    Engine,
    EvalInfo,
    Evaluate,
    Forgets,
    Loss,
    Measures,
    Reduction,
    Starts,
    StepInfo,
    SyncWeights,
    Tokenizer,
    Trainer,
)
from skyrl_kernel.records import (
    Failure,
    FloatArray,
    IntArray,
    Prompt,
    Sampling,
    Scored,
    TrainingSample,
    Trajectory,
    UpdateResult,
)
from skyrl_kernel.rollout.deadline import all_ended
from skyrl_kernel.rollout.driver import Rollouts
from skyrl_kernel.rollout.workers import Workers
from skyrl_kernel.run.checkpoint import save_checkpoint
from skyrl_kernel.run.folder import RunFolder
from skyrl_kernel.score_metrics import MISMATCH
from skyrl_kernel.sentinels import Sentinels
from skyrl_kernel.stage_states import stage_states
from skyrl_kernel.weight_sync import within_deadline

P = ParamSpec("P")
R = TypeVar("R")


@dataclass(kw_only=True)
class Session:
    """Everything the loop needs, by the name of its stage."""

    plan: Plan
    folder: RunFolder
    progress: Progress
    trainer: Trainer
    engine: Engine
    rollouts: Rollouts
    producer: Producer
    admission: Admission
    scorer: Scorer
    advantage: Advantage
    loss: Loss
    reduction: Reduction
    sync_weights: SyncWeights
    evaluate: Evaluate
    eval_scorer: Scorer
    """Of the weights that are evaluated."""
    tokenizer: Tokenizer
    val_prompts: Sequence[Prompt]
    eval_sampling: Sampling
    temperature: float
    first_step: int
    total_steps: int
    steps_per_epoch: int
    probe_rows: Sequence[IntArray]
    """[T] tokens each, on which engine and trainer must agree; empty where the engine cannot tell."""
    lock: Sequence[dict[str, Any]]
    """The plugin lock that goes into every checkpoint."""
    machines: Measures | None = None
    """The runtime, if it measures where the run computes."""
    feed: Feed | None = None
    """Brings the run to the stores of its loggers."""
    sentinels: Sentinels = field(default_factory=Sentinels)
    warnings: list[str] = field(default_factory=list)
    stop: str | None = None
    """Why an observer wants the run to end after this step; None if none does."""
    saved_step: int = 0
    """Step of the newest checkpoint."""
    eval_numbers: dict[str, float] = field(default_factory=dict)
    """Metrics of the newest evaluation."""
    first_eval: dict[str, float] = field(default_factory=dict)
    """Metrics of the evaluation before training."""
    _thread: Workers | None = None
    _is_computing: bool = False
    _syncs: int = 0
    _failed_observers: set[tuple[str, str]] = field(default_factory=set)

    def __post_init__(self) -> None:
        config = self.config
        generator = self.plan.tree.generator
        self.eval_before_train = config.eval_before_train
        self.eval_samples = generator.eval_n_samples_per_prompt
        self.eval_batch_size = config.eval_batch_size
        self.max_failed_frac = config.max_failed_frac
        self.mini_batch_size = config.policy_mini_batch_size
        self.epochs_per_batch = config.update_epochs_per_batch
        self.rollouts_per_step = config.train_batch_size * generator.n_samples_per_prompt
        self.updates_per_step = config.updates_per_step
        ahead = config.fully_async
        is_asked = generator.inference_engine.enable_ray_prometheus_stats
        self._counts = self.engine if is_asked and isinstance(self.engine, Counts) else None
        self._counted_at = time.monotonic()
        self.forgets: Forgets | None = None
        if ahead.enabled and ahead.clear_kv_cache_on_weight_sync:
            if not isinstance(self.engine, Forgets):
                raise HookError(
                    f"the engine '{self.plan.tree.generator.inference_engine.backend}' offers 'forgets_cache' "
                    "and has no method forget_cache; see skyrl_kernel.protocols.Forgets"
                )
            self.forgets = self.engine
        if not self.engine.lockstep:
            self._thread = Workers(1, "skyrl-trainer")
        self.gpu = GpuSharing(self.plan, self.engine, self.trainer, self.compute)

    @property
    def config(self) -> TrainerConfig:
        """``trainer``."""
        return self.plan.tree.trainer

    @property
    def is_ahead(self) -> bool:
        """Whether generation runs ahead of training."""
        return self.config.max_staleness > 0

    # --- calls -----------------------------------------------------------------------

    async def compute(self, function: Callable[P, R], *args: P.args, **kwargs: P.kwargs) -> R:
        """Call the trainer: beside the producer if the engine generates elsewhere."""
        if self._thread is None:
            return function(*args, **kwargs)

        def call() -> R:
            self._is_computing = True
            try:
                return function(*args, **kwargs)
            finally:
                self._is_computing = False

        result: R = await self._thread.call(call, math.inf)
        return result

    async def sync(self, version: int) -> None:
        """Bring the policy's weights to the engine, and see that they are there.

        Raises:
            WeightSyncError: The engine holds another version, or other weights, or it was not
                done within ``weight_sync_timeout_s``.
        """
        if isinstance(self.engine, Starts):
            await self.engine.started()
        await within_deadline(self._sync(version), self.plan, version, self.progress.warning)

    async def _sync(self, version: int) -> None:
        await self.gpu.begin_sync()
        if self.forgets is None:
            await self.sync_weights(self.trainer, self.engine, version)
        else:
            # Paused as a whole: no token may come from new weights on old keys and values. A sync that
            # fails ends the run: nothing more is sampled, and its error is the one that is told.
            await self.engine.pause()
            await self.sync_weights(self.trainer, self.engine, version)
            await self.forgets.forget_cache()
            await self.engine.resume()
        if self.engine.version != version:
            raise WeightSyncError(
                f"after the sync of policy version {version} the engine says that it has version "
                f"{self.engine.version}; the sync_weights stage "
                f"'{self.plan.stages['sync_weights'].provider.name}' must commit the version it was given"
            )
        is_due = self._syncs % INTERVAL == 0 or self._syncs == FIRST_CHANGE
        self._syncs += 1
        rows = self.probe_rows if is_due else ()
        expected: list[FloatArray] = []
        if rows:  # the trainer's half, while it has the accelerator
            expected = await self.compute(self.trainer.score, "policy", rows, temperature=1.0)
        await self.gpu.end_sync()
        if rows:
            engine = self.plan.tree.generator.inference_engine
            precision = coarser(bf16=self.config.bf16, engine_dtype=engine.model_dtype)
            await probe(self.engine, rows, expected, version, precision)

    async def score_evaluation(self, trajectories: Sequence[Trajectory]) -> list[Scored]:
        """Held-out trajectories with the scores that the stage `evaluate` needs."""
        if not self.evaluate.needs:
            return await self.compute(self.eval_scorer.score, trajectories)
        async with self.gpu.lent():
            return await self.compute(self.eval_scorer.score, trajectories)

    async def engine_counts(
        self, phase: Literal["train", "eval"], generating_s: float
    ) -> dict[str, float]:
        """``<engine>/<phase>/…``: what the engine counted since the call before.

        Args:
            phase: What ended.
            generating_s: Seconds that it waited for the engine. Where generation runs ahead the
                engine generates all the time.
        """
        if self._counts is None:
            return {}
        before, self._counted_at = self._counted_at, time.monotonic()
        waited_s = self._counted_at - before if self.is_ahead else generating_s
        found = await self._counts.counts(waited_s)
        prefix = f"{self.plan.tree.generator.inference_engine.backend}/{phase}"
        return {f"{prefix}/{name}": count.value for name, count in found.items()}

    def machine_numbers(self) -> Mapping[str, float]:
        """What the runtime measures of the run's machines; nothing where it does not."""
        return {} if self.machines is None else self.machines.measure()

    async def close(self) -> list[str]:
        """End all that runs beside the loop, whatever of it fails or hangs; what did, in words."""
        parts = {
            "the generation of groups": self.producer.close,
            "an env": self.rollouts.close,
            f"the engine '{self.plan.tree.generator.inference_engine.backend}'": self.engine.close,
            "the trainer": self._computed,
        }
        return await all_ended(parts, self.config.close_timeout_s)

    async def _computed(self) -> None:
        """Wait for what the trainer's thread still does when nobody waits for it any more."""
        while self._is_computing:
            await asyncio.sleep(0.01)
        if self._thread is not None:
            self._thread.close()

    def update(self, samples: Sequence[TrainingSample]) -> UpdateResult:
        """One optimizer step."""
        result = self.trainer.update(samples, self.loss, temperature=self.temperature)
        self.progress.advance()
        return result

    @contextlib.contextmanager
    def stage(self, name: str, step: int, total: int | None = None) -> Iterator[None]:
        """Show the stage, and give an exception in it the name of its plugin."""
        with self.progress.stage(name, total=total) as shown:
            if name in {"generate", "evaluate"}:
                self.rollouts.on_progress = shown.advance
            try:
                yield
            except PluginError as error:
                raise error.in_step(step) from error.__cause__
            except (SkyrlError, asyncio.CancelledError):
                raise
            except Exception as error:
                if is_disk_full(error):
                    raise
                raise self.plan.manager.attribute(error, name, step) from error

    # --- when ------------------------------------------------------------------------

    def epoch(self, step: int) -> int:
        """The epoch that a step belongs to, from 0."""
        return (step - 1) // self.steps_per_epoch

    def eval_due(self, step: int) -> bool:
        """After every ``eval_interval`` steps and after the last."""
        return self._due(step, self.config.eval_interval)

    def _due(self, step: int, interval: int) -> bool:
        return step == self.total_steps or (interval > 0 and step % interval == 0)

    # --- what is left behind -----------------------------------------------------------

    def keep(self, step: int, batch: Batch, credited: Credited) -> None:
        """Begin to write what the step trains on, beside its updates."""
        if self.config.dump_trajectories:
            self.folder.write_trajectories(step, batch.groups, credited)

    def report(
        self,
        step: int,
        batch: Batch,
        credited: Credited,
        results: Sequence[UpdateResult],
        numbers: dict[str, float],
    ) -> None:
        """Write the step's files and tell the observers.

        Raises:
            LogprobsDiffError: See `Sentinels.refuse`.
        """
        trajectories = credited.trajectories
        rewarded = any(one.turns for one in trajectories)
        difference = numbers.get(f"{MISMATCH}_mean")
        for warning in self.sentinels.check(
            step, credited, results, rewarded=rewarded, difference=difference
        ):
            self.warn(warning)
        self.report_failures(batch.failures)
        self.folder.append_metrics(step, numbers)
        self.progress.step(step, numbers)
        info = StepInfo(
            step=step, total_steps=self.total_steps, metrics=numbers, trajectories=trajectories
        )
        self.observe("on_step_end", step=info)
        self.sentinels.refuse(step, difference)
        if step == self.first_step:  # a later checkpoint would find it too, after much work
            stage_states(self.plan, step)

    def report_evaluation(
        self,
        step: int,
        numbers: dict[str, float],
        counted: Mapping[str, float],
        trajectories: Sequence[Trajectory],
        failures: Sequence[Failure],
    ) -> None:
        """Tell the observers; the numbers of step 0, with those that were counted, are a line of their own."""
        self.report_failures(failures)
        for name, value in numbers.items():
            if not math.isfinite(value):
                self.warn(f"evaluation at step {step}: {name} is {value}")
        if step == 0:
            self.first_eval = numbers
            self.folder.append_metrics(0, {**numbers, **counted})
        self.eval_numbers = numbers
        self.observe(
            "on_eval_end",
            evaluation=EvalInfo(
                step=step, metrics={**numbers, **counted}, trajectories=trajectories
            ),
        )

    def report_failures(self, failures: Sequence[Failure]) -> None:
        """Write lost trajectories down, and say of each kind once that there are some."""
        if not failures:
            return
        self.folder.append_failures(failures)
        for failure in failures:
            kind = f"trajectories are lost ({failure.kind}"
            if not any(warning.startswith(kind) for warning in self.warnings):
                self.warn(f"{kind}): {failure.message}; each is counted in failures.jsonl")
            self.observe("on_failure", failure=failure)

    def warn(self, text: str) -> None:
        """Say it now, and again when the run ends."""
        if text not in self.warnings:
            self.warnings.append(text)
            self.progress.warning(text)

    def observe(self, hook: str, **kwargs: Any) -> None:
        """Call every observer; one that raises is named and the run goes on.

        A `StopRun` sets `stop`; the loop ends after its step.
        """
        self._call_observers(hook, kwargs)
        if self.feed is not None:
            for text in self.feed.observe(hook, **kwargs):
                self.warn(text)

    def _call_observers(self, hook: str, kwargs: Mapping[str, Any]) -> None:
        try:
            failures = self.plan.manager.observe(hook, **kwargs)
        except StopRun as stop:
            self.stop = self.stop or str(stop) or "an observer stopped the run"
            for note in getattr(stop, "__notes__", ()):
                self.warn(note)
            return
        for failure in failures:
            key = (failure.plugin.qualified, hook)
            if key not in self._failed_observers:  # one that fails at every step is said once
                self._failed_observers.add(key)
                self.warn(str(failure))

    # --- checkpoints -------------------------------------------------------------------

    async def save(self, step: int, clock: Clock) -> None:
        """Write the Hugging Face export and the checkpoint, each where it is due."""
        exported = bool(self.stop) or self._due(step, self.config.hf_save_interval)
        if exported:
            with clock("save_hf_model"):
                # First: after its last checkpoint a run counts as finished.
                await self.compute(self._export, step)
        if not (self.stop or self._due(step, self.config.ckpt_interval)):
            return
        with clock("save_checkpoints"), self.stage("checkpoint", step):
            # Taken here, not beside the producer, which goes on: it is of one moment.
            state = self.state_dict(step)
            path = await self.compute(self._checkpoint, step, state)
        self.observe("on_checkpoint", step=step, folder=path)
        if self.stop and not exported:  # an observer of the checkpoint stopped the run
            await self.compute(self._export, step)

    def _checkpoint(self, step: int, state: Mapping[str, Any]) -> Path:
        self.folder.sync()
        path = save_checkpoint(
            self.folder.checkpoints, step, self.trainer.save, state, self.config.max_ckpts_to_keep
        )
        self.saved_step = step
        return path

    def _export(self, step: int) -> None:
        with self.progress.stage("export"):
            self.folder.write_aside(self.folder.export / f"global_step_{step}", self.trainer.export)

    def state_dict(self, step: int) -> dict[str, Any]:
        """The controller's state after ``step``, JSON-able."""
        return {
            "step": step,
            "total_steps": self.total_steps,
            "producer": self.producer.state_dict(),
            "sentinels": self.sentinels.state_dict(),
            "warnings": self.warnings,
            "first_eval": self.first_eval,
            "stages": stage_states(self.plan, step),
            "lock": list(self.lock),
        }
