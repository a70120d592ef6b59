"""Says where a step's time goes: what engine, trainer and tokenizer compute, and what is left.

Between the ends of two steps, in order, with the mark that ends each part::

    rollouts   begins groups, plays episodes, judges them     `select` is called
    batches    advantages, weights of tokens, checks          `sync_weights` is called
    reports    what is written and shown of metrics           `on_step_end`
    loggers    what they do with them                         the last `on_step_end`

What engine, trainer, tokenizer, the stages reward and advantage and the writer of
the trajectory file compute meanwhile is taken out of the parts and counted by
itself, and so is what the clocks cost; metrics are measured among the batches and
counted with the reports; the agent loop and the envs are measured
when the run has ended (see `replay`). Seconds are of CPU time, all threads
together: others who use the machine do not change them. It all goes to
``stopwatch.json`` in the run folder.
"""

import dataclasses
import functools
import inspect
import json
import threading
import time
from collections.abc import Callable, Collection, Generator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

import skyrl_fsdp.plugin
import skyrl_kernel.loop
import skyrl_kernel.run.folder
import skyrl_transformers.plugin
from skyrl_kernel.hookspecs import hookimpl
from skyrl_kernel.protocols import (
    Advantage,
    Engine,
    RewardFn,
    RunEnd,
    RunInfo,
    Select,
    Settings,
    StepInfo,
    SyncWeights,
    Tokenizer,
    Trainer,
)
from skyrl_kernel.records import Group, Selection, Trajectory
from skyrl_stopwatch import replay

NAME = "stopwatch"
ENGINE_COUNTERS = ("prompt_tokens_computed", "tokens_generated")


class Watch:
    """Sums since the last lap; a lap is a step."""

    def __init__(self) -> None:
        self.engine: Any = None
        self.settings: Settings | None = None
        self.trajectories: Sequence[Trajectory] = ()
        """Of the last step."""
        self.folder = Path()
        self.laps: list[dict[str, float]] = []
        self.run_started_at = 0.0
        """Seconds since the epoch."""
        self.first_step_at = 0.0
        """The same, of the end of the first step."""
        self._sums: dict[str, float] = {}
        self._counted = dict.fromkeys(ENGINE_COUNTERS, 0)
        self._computed = 0.0
        self._marked = (0.0, 0.0)
        """CPU seconds, and those of them computed in timed blocks, at the last mark."""
        self._clocks = 0.0
        """What the clocks had cost at the last mark."""
        self._began = 0.0
        self._lock = threading.Lock()

    def begin(self, folder: Path) -> None:
        """A run starts."""
        self.folder, self.run_started_at = folder, time.time()
        self._marked = time.process_time(), self._computed
        self._sums, self._began = {}, time.perf_counter()

    def add(self, name: str, amount: float) -> None:
        """Count something."""
        self._sums[name] = self._sums.get(name, 0.0) + amount

    def count(self, name: str, seconds: float) -> None:
        """A timed block took so long."""
        with self._lock:  # rewards are judged and files written in threads
            self._computed += seconds
            self.add(name, seconds)
            self.add("clocks_s", CLOCK_S)

    def mark(self, name: str) -> None:
        """What passed since the last mark outside of timed blocks belongs to ``name``."""
        now, computed = time.process_time(), self._computed
        clocks = self._sums.get("clocks_s", 0.0) - self._clocks
        self.add(name, (now - self._marked[0]) - (computed - self._marked[1]) - clocks)
        self._marked, self._clocks = (now, computed), self._sums.get("clocks_s", 0.0)

    def lap(self) -> None:
        """A step ends."""
        self.first_step_at = self.first_step_at or time.time()
        for name, before in self._counted.items():
            self._counted[name] = getattr(self.engine, name)
            self.add(name, self._counted[name] - before)
        now = time.perf_counter()
        self.laps.append({**self._sums, "wall_s": now - self._began})
        self._sums, self._began, self._clocks = {}, now, 0.0


CLOCK_S = 0.0
"""What a timed block costs beside what it measures; set by `calibrate`."""
watch = Watch()


def calibrate(blocks: int = 2000) -> None:
    """Time blocks of nothing."""
    global CLOCK_S
    nothing = _timed(lambda: None, "nothing")
    began, counted = time.thread_time(), watch._computed
    for _ in range(blocks):
        nothing()
    CLOCK_S = (time.thread_time() - began - (watch._computed - counted)) / blocks


def time_methods(thing: object, **names: str) -> None:
    """Put a clock around methods of this one object: method → what its seconds are added to."""
    for method, name in names.items():
        setattr(thing, method, _timed(getattr(thing, method), name))


def _timed(function: Callable[..., Any], name: str) -> Callable[..., Any]:
    # Thread time: what other threads do meanwhile is not the block's.
    if inspect.iscoroutinefunction(function):

        @functools.wraps(function)
        async def timed_async(*args: Any, **kwargs: Any) -> Any:
            began = time.thread_time()
            try:
                return await function(*args, **kwargs)
            finally:
                watch.count(name, time.thread_time() - began)

        return timed_async

    @functools.wraps(function)
    def timed(*args: Any, **kwargs: Any) -> Any:
        began = time.thread_time()
        try:
            return function(*args, **kwargs)
        finally:
            watch.count(name, time.thread_time() - began)

    return timed


# --- what computes --------------------------------------------------------------------


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
    name: str,
    settings: Settings,
    models: Mapping[str, Path],
    total_updates: int,
    elsewhere: Collection[str],
) -> Trainer | None:
    """The trainer of the plugin fsdp, timed."""
    if name != NAME:
        return None
    trainer = skyrl_fsdp.plugin.make_trainer(
        skyrl_fsdp.plugin.NAME, settings, models, total_updates, elsewhere
    )
    time_methods(trainer, score="score_s", update="update_s")
    watch.settings = settings
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


@hookimpl(wrapper=True)
def reward() -> Generator[None, RewardFn, RewardFn]:
    """The stage, timed; called where the kernel would call it."""
    inner = yield
    timed = _timed(inner, "reward_s")
    timed.instant = getattr(inner, "instant", False)  # type: ignore[attr-defined]
    return timed


@hookimpl(wrapper=True)
def advantage() -> Generator[None, Advantage, Advantage]:
    """The stage, timed."""
    inner = yield
    return dataclasses.replace(inner, fn=_timed(inner.fn, "advantage_s"))


# --- marks ----------------------------------------------------------------------------


@hookimpl(wrapper=True)
def select() -> Generator[None, Select, Select]:
    """Generating ends here."""
    inner = yield

    def marked(candidates: Sequence[Group], target: int, rng: np.random.Generator) -> Selection:
        watch.mark("rollouts_s")
        return inner(candidates, target, rng)

    return marked


@hookimpl(wrapper=True)
def sync_weights() -> Generator[None, SyncWeights, SyncWeights]:
    """Training ends here."""
    inner = yield

    async def marked(trainer: Trainer, engine: Engine, version: int) -> None:
        watch.mark("batches_s")
        await inner(trainer, engine, version)

    return marked


@hookimpl
def on_run_start(run: RunInfo) -> None:
    """Start the clock."""
    folder = skyrl_kernel.run.folder
    skyrl_kernel.loop.measure = _timed(skyrl_kernel.loop.measure, "reports_s")
    folder.trajectory_table = _timed(folder.trajectory_table, "files_s")
    folder.write_table = _timed(folder.write_table, "files_s")
    calibrate()
    watch.begin(run.folder)


@hookimpl
def on_step_end(step: StepInfo) -> None:
    """What the lap's rollouts and updates needed at least; `end` ends it."""
    watch.mark("reports_s")
    trajectories = watch.trajectories = step.trajectories
    prompts = {one.prompt.uid: one.segments[0].num_prompt_tokens for one in trajectories}
    watch.add("prompt_tokens", sum(prompts.values()))
    watch.add("prompts", len(prompts))
    watch.add("trajectories", len(trajectories))
    watch.add("tokens", sum(len(one.segments[0].tokens) for one in trajectories))
    watch.mark("stopwatch_s")  # all this is nobody's


@hookimpl
def on_run_end(end: RunEnd) -> None:
    """Play the last step again, and write everything."""
    assert watch.settings is not None, "the run has made its trainer"
    record: dict[str, Any] = {
        "run_started_at": watch.run_started_at,
        "first_step_at": watch.first_step_at,
        "laps": watch.laps,
        "replayed": replay.measure(watch.trajectories, watch.settings),
    }
    (watch.folder / "stopwatch.json").write_text(json.dumps(record, indent=1))
