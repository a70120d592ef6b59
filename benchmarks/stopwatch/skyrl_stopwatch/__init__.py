"""Times what engine and trainer compute in a run; what is left of a step is the kernel's.

Everything that happens between the ends of two steps belongs to the later one:
the stages, and also metrics, trajectory files and loggers. Written to
``stopwatch.json`` in the run folder when the run ends.
"""

import contextlib
import functools
import inspect
import json
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import skyrl_fsdp.plugin
import skyrl_transformers.plugin
from skyrl_kernel.hookspecs import hookimpl
from skyrl_kernel.protocols import (
    Engine,
    RunEnd,
    RunInfo,
    Settings,
    StepInfo,
    Tokenizer,
    Trainer,
)

NAME = "stopwatch"


class Watch:
    """Sums since the last lap."""

    def __init__(self) -> None:
        self.laps: list[dict[str, float]] = []
        self.engine: Any = None
        self.folder = Path()
        self.run_started_at = 0.0
        """Seconds since the epoch."""
        self.first_step_at = 0.0
        """The same, of the end of the first step."""
        self._sums: dict[str, float] = {}
        self._counted = {"prompt_tokens_computed": 0, "tokens_generated": 0}
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
        for name, before in self._counted.items():
            self._counted[name] = getattr(self.engine, name)
            self.add(name, self._counted[name] - before)
        self.laps.append({**self._sums, "wall_s": now - self._began})
        self._sums, self._began = {}, now


watch = Watch()


def time_methods(thing: object, **names: str) -> None:
    """Put a clock around methods of this one object: method → what its seconds are added to."""
    for method, name in names.items():
        setattr(thing, method, _timed(getattr(thing, method), name))


def _timed(function: Callable[..., Any], name: str) -> Callable[..., Any]:
    if inspect.iscoroutinefunction(function):

        @functools.wraps(function)
        async def timed_async(*args: Any, **kwargs: Any) -> Any:
            with watch(name):
                return await function(*args, **kwargs)

        return timed_async

    @functools.wraps(function)
    def timed(*args: Any, **kwargs: Any) -> Any:
        with watch(name):
            return function(*args, **kwargs)

    return timed


@hookimpl
def make_engine(name: str, settings: Settings, model: Path) -> Engine | None:
    """The engine of the plugin transformers, timed."""
    if name != NAME:
        return None
    engine = skyrl_transformers.plugin.make_engine(skyrl_transformers.plugin.NAME, settings, model)
    time_methods(engine, generate="engine_s")
    watch.engine = engine
    return engine


@hookimpl
def make_trainer(
    name: str, settings: Settings, models: Mapping[str, Path], total_updates: int
) -> Trainer | None:
    """The trainer of the plugin fsdp, timed."""
    if name != NAME:
        return None
    trainer = skyrl_fsdp.plugin.make_trainer(
        skyrl_fsdp.plugin.NAME, settings, models, total_updates
    )
    time_methods(trainer, score="score_s", update="update_s")
    return trainer


@hookimpl
def make_tokenizer(name: str, model: Path, settings: Settings) -> Tokenizer | None:
    """The tokenizer of the plugin transformers, timed."""
    if name != NAME:
        return None
    tokenizer = skyrl_transformers.plugin.make_tokenizer(
        skyrl_transformers.plugin.NAME, model, settings
    )
    time_methods(tokenizer, **dict.fromkeys(("encode", "encode_chat", "decode"), "tokenizer_s"))
    return tokenizer


@hookimpl
def on_run_start(run: RunInfo) -> None:
    """Start the clock."""
    watch.begin(run.folder)


@hookimpl
def on_step_end(step: StepInfo) -> None:
    """A lap, with what its rollouts and updates needed at least."""
    trajectories = step.trajectories
    prompts = {one.prompt.uid: one.segments[0].num_prompt_tokens for one in trajectories}
    watch.add("prompt_tokens", sum(prompts.values()))
    watch.add("prompts", len(prompts))
    watch.add("trajectories", len(trajectories))
    watch.add("tokens", sum(len(one.segments[0].tokens) for one in trajectories))
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
