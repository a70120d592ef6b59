"""Times what engine and trainer compute in a run; what is left of a step is the kernel's.

Everything that happens between the ends of two steps belongs to the later one:
the stages, and also metrics, trajectory files and loggers. Written to
``stopwatch.json`` in the run folder when the run ends.
"""

import contextlib
import json
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from skyrl_fsdp.trainer import FsdpTrainer
from skyrl_kernel.config import GeneratorConfig, TrainerConfig
from skyrl_kernel.hookspecs import hookimpl
from skyrl_kernel.protocols import Engine, Loss, RunEnd, RunInfo, Settings, StepInfo, Trainer
from skyrl_kernel.records import (
    Completion,
    FloatArray,
    GenerateRequest,
    IntArray,
    TrainingSample,
    UpdateResult,
)
from skyrl_transformers.engine import TransformersEngine

NAME = "stopwatch"


class Watch:
    """Sums since the last lap."""

    def __init__(self) -> None:
        self.laps: list[dict[str, float]] = []
        self.folder = Path()
        self.run_started_at = 0.0
        """Seconds since the epoch."""
        self.first_step_at = 0.0
        """The same, of the end of the first step."""
        self._sums: dict[str, float] = {}
        self._began = 0.0

    def begin(self, folder: Path) -> None:
        """A run starts."""
        self.folder, self.run_started_at = folder, time.time()
        self._sums, self._began = {}, time.perf_counter()

    def add(self, name: str, amount: float) -> None:
        """Count something."""
        self._sums[name] = self._sums.get(name, 0.0) + amount

    @contextlib.contextmanager
    def __call__(self, name: str) -> Iterator[None]:
        """Time the block."""
        began = time.perf_counter()
        try:
            yield
        finally:
            self.add(name, time.perf_counter() - began)

    def lap(self) -> None:
        """A step ends."""
        self.first_step_at = self.first_step_at or time.time()
        now = time.perf_counter()
        self.laps.append({**self._sums, "wall_s": now - self._began})
        self._sums, self._began = {}, now


watch = Watch()


class TimedEngine(TransformersEngine):
    """Counts seconds and tokens of `generate`."""

    async def generate(self, requests: Sequence[GenerateRequest]) -> list[Completion]:
        prompts, tokens = self.prompt_tokens_computed, self.tokens_generated
        with watch("engine_s"):
            completions = await super().generate(requests)
        watch.add("prompt_tokens_computed", self.prompt_tokens_computed - prompts)
        watch.add("tokens_generated", self.tokens_generated - tokens)
        return completions


class TimedTrainer(FsdpTrainer):
    """Counts seconds of `score` and `update`, and the tokens of the latter."""

    def score(self, role: str, rows: Sequence[IntArray], *, temperature: float) -> list[FloatArray]:
        with watch("score_s"):
            return super().score(role, rows, temperature=temperature)

    def update(
        self, batch: Sequence[TrainingSample], loss: Loss, *, temperature: float
    ) -> UpdateResult:
        with watch("update_s"):
            result = super().update(batch, loss, temperature=temperature)
        watch.add("tokens_trained", sum(len(sample.tokens) for sample in batch))
        return result


@hookimpl
def make_engine(name: str, settings: Settings, model: Path) -> Engine | None:
    """As the plugin transformers makes it."""
    if name != NAME:
        return None
    return TimedEngine(
        model,
        max_rows=settings[GeneratorConfig].inference_engine.max_num_seqs,
        bf16=settings[TrainerConfig].bf16,
    )


@hookimpl
def make_trainer(
    name: str, settings: Settings, models: Mapping[str, Path], total_updates: int
) -> Trainer | None:
    """As the plugin fsdp makes it."""
    if name != NAME:
        return None
    trainer = TimedTrainer(models, settings[TrainerConfig])
    trainer.set_total_updates(total_updates)
    return trainer


@hookimpl
def on_run_start(run: RunInfo) -> None:
    """Start the clock."""
    watch.begin(run.folder)


@hookimpl
def on_step_end(step: StepInfo) -> None:
    """A lap: with what the step's rollouts needed at least, to compare with what was computed."""
    prompts = {one.prompt.uid: one.segments[0].num_prompt_tokens for one in step.trajectories}
    watch.add("prompt_tokens", sum(prompts.values()))
    watch.add("prompts", len(prompts))
    watch.add("trajectories", len(step.trajectories))
    for name, value in step.metrics.items():
        if name.startswith("timing/"):
            watch.add(name, value)
    watch.lap()


@hookimpl
def on_run_end(end: RunEnd) -> None:
    """Write everything."""
    record: dict[str, Any] = {
        "run_started_at": watch.run_started_at,
        "first_step_at": watch.first_step_at,
        "laps": watch.laps,
    }
    (watch.folder / "stopwatch.json").write_text(json.dumps(record, indent=1))
