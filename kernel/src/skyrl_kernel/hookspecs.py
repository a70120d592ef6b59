"""Every hook of the project, by family; stages stand in the order of a step.

Each family has its rule:

- **make** hooks take the name that was asked for and return an object, or None
  if the name is not theirs. The first answer counts. The two whose names begin
  with ``check_`` refuse a run before anything is made.
- **stage** hooks take the name that their config slot holds and return a typed
  callable, or None if the name is not theirs. They are called once, at
  start-up; the loop calls the callables. A wrapper (``hookimpl(wrapper=True)``)
  receives the inner callable from its ``yield`` and returns a new one around it.
- **observe** hooks are called one by one, in the order that ``--dry-run``
  prints. One that raises is reported by name and does not stop the run;
  raising `StopRun` ends it cleanly.

Hooks are synchronous; what ``generate`` and ``sync_weights`` return is async.
An implementation names only the arguments it wants. Unless a hook says
otherwise it runs in the controller process, and raising in it at start-up ends
the command with exit code 2 before anything was written.
"""

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pluggy

if TYPE_CHECKING:
    import pyarrow as pa
    from pydantic import BaseModel

    from skyrl_kernel.env import Env
    from skyrl_kernel.feed import Sink
    from skyrl_kernel.protocols import (
        Advantage,
        DataRecipe,
        Engine,
        EvalInfo,
        Evaluate,
        Generate,
        Loss,
        MeasureRow,
        Reduction,
        RewardFn,
        RunEnd,
        RunInfo,
        Runtime,
        Select,
        Settings,
        StepInfo,
        SyncWeights,
        Tokenizer,
        Trainer,
    )
    from skyrl_kernel.records import Failure

PROJECT = "skyrl"
hookspec = pluggy.HookspecMarker(PROJECT)
hookimpl = pluggy.HookimplMarker(PROJECT)

# --- before a run -----------------------------------------------------------------


@hookspec
def config_sections() -> "Mapping[str, type[BaseModel]]":  # type: ignore[empty-body]
    """The config that this plugin owns: dotted path → pydantic model.

    Called once, when the plugin is registered, before the config is read; all
    answers are used. The paths are also listed in ``plugin.toml``, so that a
    misplaced key can be explained without importing anything.
    """


@hookspec(firstresult=True)
def data_recipe(name: str) -> "DataRecipe | None":
    """How ``skyrl data NAME`` makes the data set. Called once by that command."""


# --- make -------------------------------------------------------------------------


@hookspec(firstresult=True)
def make_runtime(name: str, settings: "Settings") -> "Runtime | None":
    """The runtime that ``trainer.runtime`` names: where trainer and engine run. Called once."""


@hookspec(firstresult=True)
def load_dataset(source: str, settings: "Settings") -> "pa.Table | None":
    """The rows of a source that is not a file, such as ``multiply:train``.

    Called at start-up for each entry of ``data.train_data`` and
    ``data.val_data`` of the form ``NAME:SPLIT`` whose NAME is this plugin's.
    """


@hookspec(firstresult=True)
def measure_row(name: str, settings: "Settings") -> "MeasureRow | None":
    """How the stage `generate` of that name checks the rows that it reads its answers from.

    Called at start-up with the name in ``generator.rollout``, of plugins whose
    ``plugin.toml`` offers ``reads_rows``; the rows of other stages are prompts.
    The callable is asked for every row before anything is made.
    """


@hookspec
def check_env(name: str, settings: "Settings") -> None:
    """Whether an env can be made here at all.

    Called at start-up for each env that the rows name, whichever plugin's it is;
    all plugins are asked. A `UsageError` refuses the run with what the rows say
    about it, so that a missing program or class costs no trajectory.
    """


@hookspec(firstresult=True)
def load_model(path: str, settings: "Settings") -> "Path | None":
    """A local Hugging Face directory for a model path of the form ``NAME:REST``.

    Called at start-up, once per model role. May take long; shows its progress.
    """


@hookspec(firstresult=True)
def make_tokenizer(name: str, model: Path, settings: "Settings") -> "Tokenizer | None":
    """The tokenizer of a model directory. Called once per model at start-up."""


@hookspec(firstresult=True)
def make_trainer(
    name: str,
    settings: "Settings",
    models: Mapping[str, Path],
    total_updates: int,
    elsewhere: Collection[str],
) -> "Trainer | None":
    """The trainer that ``trainer.strategy`` names.

    Called once in each of the trainer's processes; of several, each is a rank and
    makes its part: see `skyrl_kernel.protocols.Ranked`. ``models`` maps each role
    in use (``policy``, ``reference``, …) to its model directory: where the
    reference or the critic ``value`` has processes of its own, that role alone.
    ``total_updates`` is the number of optimizer steps of the whole run, for schedules.
    ``elsewhere`` has the roles of the run that other processes have: `Trainer.update`
    leaves them out, and `Trainer.save` writes into the folder beside what they write.
    """


@hookspec(firstresult=True)
def check_engine(name: str, settings: "Settings") -> "Sequence[str] | None":
    """What keeps the engine of that name from running here: a sentence each, none if nothing does.

    Called once, in the controller, while a run is planned: before anything is made.
    A run is refused with the answers, ``--dry-run`` lists them. Settings that no
    machine could run with are a `ConfigError`. An engine without this hook is taken
    as it is.
    """


@hookspec(firstresult=True)
def make_engine(name: str, settings: "Settings", model: Path) -> "Engine | None":
    """The engine that ``generator.inference_engine.backend`` names.

    Called once in the engine's process; with several engines under Ray, once in each.
    It holds the weights of ``model`` until `sync_weights` brings others.
    """


@hookspec(firstresult=True)
def make_env(
    name: str, settings: "Settings", extras: Mapping[str, Any], max_turns: int | None
) -> "Env | None":
    """A fresh env for one trajectory.

    Called for every trajectory, in a worker thread, or in a process of its own
    if the env sets ``isolate`` or has hung before. ``extras`` is a copy of the
    row's columns; ``max_turns`` is ``generator.max_turns``, a cap. Raising costs
    this trajectory only. A plugin that offers ``any_env`` is asked for every name
    that no installed env has.
    """


@hookspec(firstresult=True)
def make_reduction(name: str, settings: "Settings") -> "Reduction | None":
    """How per-token policy losses of a mini-batch are weighted: ``trainer.algorithm.loss_reduction``."""


@hookspec(firstresult=True)
def make_sink(name: str, settings: "Settings") -> "Sink | None":
    """The store of a logger that ``trainer.logger`` names (`skyrl_kernel.feed`).

    Called at start-up, so that what cannot work is refused, and again in the
    logger's own process, where the sink is used. Cheap: it opens nothing and
    imports nothing heavy. Loggers without a store observe instead.
    """


# --- stages, in the order of a step -------------------------------------------------


@hookspec(firstresult=True)
def generate(name: str, settings: "Settings") -> "Generate | None":
    """Stage 1, slot ``generator.rollout``: play one episode (async).

    The callable runs once per trajectory, many at a time. Raising costs that
    trajectory only; it is counted by kind.
    """


@hookspec(firstresult=True)
def reward(name: str, settings: "Settings") -> "RewardFn | None":
    """Stage 2, slot ``generator.reward``: judge the trajectories of one group.

    The callable runs once per group, in a worker thread under
    ``generator.reward_timeout_s``. One that has an attribute ``instant = True``
    promises to take microseconds of Python and to wait for nothing, as envs may: it is
    called in the event loop's thread. If it raises, each trajectory is judged
    alone and those that raise again are lost, counted by kind.
    """


@hookspec(firstresult=True)
def select(name: str, settings: "Settings") -> "Select | None":
    """Stage 3, slot ``trainer.algorithm.dynamic_sampling.type``: keep, mask or drop groups.

    The callable runs each time a batch's worth of groups is there. Raising
    stops the run.
    """


@hookspec(firstresult=True)
def advantage(name: str, settings: "Settings") -> "Advantage | None":
    """Stage 4, slot ``trainer.algorithm.advantage_estimator``: credit tokens.

    The callable runs once per step on the whole batch. Raising stops the run.
    """


@hookspec(firstresult=True)
def loss(name: str, settings: "Settings") -> "Loss | None":
    """Stage 5, slot ``trainer.algorithm.policy_loss_type``: per-token terms of the objective.

    The callable runs once per micro-batch, in every trainer process. Raising
    stops the run.
    """


@hookspec(firstresult=True)
def sync_weights(name: str, settings: "Settings") -> "SyncWeights | None":
    """Stage 6, slot ``generator.inference_engine.weight_sync_backend``: weights to the engine (async).

    The callable runs before the first rollout and after every step: in the controller, or, if its
    plugin needs more than ``receives_weights`` and the runtime has processes of their own, in a
    process of the trainer with an engine that is attached to servers. There it reads ``weights()``
    once, as the other ranks do. Raising stops the run.
    """


@hookspec(firstresult=True)
def evaluate(name: str, settings: "Settings") -> "Evaluate | None":
    """Stage 7, slot ``trainer.evaluator``: metrics of judged held-out trajectories.

    The callable runs once per data source and once over all, after every
    ``trainer.eval_interval`` steps. Raising stops the run.
    """


# --- observe ------------------------------------------------------------------------


@hookspec
def on_run_start(run: "RunInfo") -> None:
    """Once, after everything was made and before the first rollout; again after a resume."""


@hookspec
def on_step_end(step: "StepInfo") -> None:
    """After each step, its weights synced and its files written."""


@hookspec
def on_eval_end(evaluation: "EvalInfo") -> None:
    """After each evaluation, the one before training included (step 0)."""


@hookspec
def on_checkpoint(step: int, folder: Path) -> None:
    """After a checkpoint is complete and in its place."""


@hookspec
def on_failure(failure: "Failure") -> None:
    """For each lost trajectory, when its step is collected."""


@hookspec
def on_run_end(end: "RunEnd") -> None:
    """Once, last, however the run ends, a kill excepted. Flush here."""
