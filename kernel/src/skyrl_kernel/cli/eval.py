"""``skyrl eval``: the held-out numbers of a run's checkpoint, or of any model."""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from skyrl_kernel.errors import CheckpointError, RunError, SkyrlError, UsageError

if TYPE_CHECKING:
    from skyrl_kernel.plan import Plan
    from skyrl_kernel.progress import Progress
    from skyrl_kernel.protocols import Engine, SyncWeights, Trainer
    from skyrl_kernel.records import Failure, Trajectory
    from skyrl_kernel.run import Checkpoint, RunFolder


_COUNTS = {"num_trajectories", "num_tokens", "num_pairs", "failed"}


@dataclass(frozen=True, kw_only=True, slots=True)
class _Subject:
    """What is evaluated."""

    plan: "Plan"
    checkpoint: "Checkpoint | None" = None
    """None: the model as it is."""
    notes: tuple[str, ...] = ()
    """What the user must be told, in full sentences."""


@click.command("eval")
@click.option("--plugin", "plugins", multiple=True, metavar="NAME", help="As in 'skyrl run'.")
@click.option(
    "--config",
    "files",
    multiple=True,
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="As in 'skyrl run'.",
)
@click.option(
    "--step",
    type=click.IntRange(min=1),
    metavar="N",
    help="The run's checkpoint of that step; default: its newest.",
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
@click.option(
    "--dump",
    type=click.Path(path_type=Path, file_okay=False),
    metavar="FOLDER",
    help="Write what was generated there, one file per data source.",
)
@click.argument("target", metavar="RUN_OR_MODEL")
@click.argument("overrides", nargs=-1, metavar="[KEY=VALUE]...")
def eval(
    target: str,
    plugins: tuple[str, ...],
    files: tuple[Path, ...],
    step: int | None,
    as_json: bool,
    dump: Path | None,
    overrides: tuple[str, ...],
) -> None:
    """Evaluate a run, or a model.

    \b
    skyrl eval runs/demo                        the newest checkpoint, on the run's held-out data
    skyrl eval runs/demo --step 20 generator.eval_sampling_params.temperature=1
    skyrl eval runs/demo/export/global_step_30 --plugin gsm8k data.val_data="['val.parquet']"
    skyrl eval builtin:tiny --plugin demo

    A run brings its config and its plugins; a model gets both from the words behind it.
    Nothing is written into the run folder. --dump keeps the texts, as trainer.dump_eval_results
    does in a run.
    """  # noqa: D301 -- click's \\b
    from skyrl_kernel import progress

    if as_json:
        progress.use_stderr()
    if (Path(target).expanduser() / "config.yaml").is_file():
        subject = _run_subject(Path(target).expanduser(), plugins, files, overrides, step)
    else:
        subject = _model_subject(target, plugins, files, overrides, step)
    for note in (*subject.plan.notes, *subject.notes):
        click.echo(f"warning: {note}", err=True)
    if dump is not None:
        dump = dump.expanduser()
        if dump.exists() and any(dump.iterdir()):
            raise UsageError(f"--dump {dump}: the folder is not empty; name a new one")
    numbers, failures = _play(subject, progress.Progress("eval", 1, lines=False), dump)
    reached = None if subject.checkpoint is None else subject.checkpoint.step
    if as_json:
        click.echo(_json(target, reached, numbers, failures))
        return
    click.echo(f"{target}" + ("" if reached is None else f", step {reached}"))
    click.echo(_table(numbers))
    if failures:
        click.echo(
            f"warning: {len(failures)} trajectories were lost and count nowhere above; the first: "
            f"{failures[0].message}",
            err=True,
        )


# --- what is evaluated --------------------------------------------------------------------


def _run_subject(
    path: Path,
    plugins: Sequence[str],
    files: Sequence[Path],
    overrides: Sequence[str],
    step: int | None,
) -> _Subject:
    """The run's own plugins and config below what was given now; its checkpoint."""
    from skyrl_kernel.plan import make_plan
    from skyrl_kernel.plugins import diff_locks, plugin_lock
    from skyrl_kernel.run import RunFolder, load_state

    folder = RunFolder(path)
    _refuse_masked(folder, overrides)
    checkpoint, notes = _find_checkpoint(folder, step)
    recorded = [f"{one['kind']}/{one['name']}" for one in folder.read_plugins()]
    plan = make_plan([*recorded, *plugins], [folder.config, *files], overrides, training=False)
    changed = diff_locks(
        load_state(checkpoint)["lock"],
        plugin_lock([entry for entry in plan.entries if entry.qualified in recorded]),
    )
    if changed:
        notes.append(
            f"plugins changed since {checkpoint.path.name} was written: {'; '.join(changed)}; "
            "the numbers may differ from the run's"
        )
    return _Subject(plan=plan, checkpoint=checkpoint, notes=tuple(notes))


def _refuse_masked(folder: "RunFolder", overrides: Sequence[str]) -> None:
    """Secrets are not in config.yaml; those that the run had must be given again."""
    from skyrl_kernel.config.sources import flatten, read_overrides
    from skyrl_kernel.masking import MASK

    given = read_overrides(overrides)
    hidden = [
        key
        for key, value in flatten(folder.read_config()).items()
        if value == MASK and key not in given
    ]
    if hidden:
        raise UsageError(
            f"{folder.config} does not hold the secrets of the run: give {', '.join(hidden)} again, "
            "as key=value"
        )


def _find_checkpoint(folder: "RunFolder", step: int | None) -> "tuple[Checkpoint, list[str]]":
    """The checkpoint of ``step`` or the newest whole one, and what is wrong with newer ones."""
    from skyrl_kernel.run import checkpoint_at, latest_checkpoint

    if step is not None:
        path = folder.checkpoints / f"global_step_{step}"
        if not path.is_dir():
            names = [one.name for one in folder.checkpoints.glob("global_step_*")]
            steps = sorted(
                int(n.rpartition("_")[2]) for n in names if n[-1].isdigit() and "." not in n
            )
            raise UsageError(
                f"--step {step}: {folder.path} has no checkpoint of that step; there are: "
                f"{', '.join(map(str, steps)) or 'none'}"
            )
        return checkpoint_at(path), []
    found, damaged = latest_checkpoint(folder.checkpoints, clean=False)
    if found is None and damaged:
        raise CheckpointError(f"no checkpoint of {folder.path} can be used: {'; '.join(damaged)}")
    if found is None:
        raise UsageError(
            f"{folder.path} has no checkpoint yet: there is nothing of the run to evaluate. Its model "
            "as it was before training: skyrl eval MODEL"
        )
    return found, [f"{problem}; evaluating {found.path.name} instead" for problem in damaged]


def _model_subject(
    target: str,
    plugins: Sequence[str],
    files: Sequence[Path],
    overrides: Sequence[str],
    step: int | None,
) -> _Subject:
    from skyrl_kernel.plan import make_plan

    if step is not None:
        raise UsageError(
            f"--step {step} asks for a checkpoint, but {target} is no run folder: it has no config.yaml"
        )
    folder = Path(target).expanduser()
    if folder.is_dir() and not (folder / "config.json").is_file():
        runs = sorted(str(config.parent) for config in folder.glob("*/config.yaml"))
        raise UsageError(
            f"{target} is neither a run folder, which has config.yaml, nor a Hugging Face directory, "
            f"which has config.json; run folders in it: {', '.join(runs) or 'none'}"
        )
    words = [*overrides, f"trainer.policy.model.path={json.dumps(target)}"]
    return _Subject(plan=make_plan(plugins, files, words, training=False))


# --- evaluating ---------------------------------------------------------------------------


def _play(
    subject: _Subject, progress: "Progress", dump: Path | None
) -> "tuple[dict[str, float], Sequence[Failure]]":
    """Everything between a plan and its held-out numbers; nothing is written but ``dump``."""
    from skyrl_kernel import assemble, event_loop, prepared
    from skyrl_kernel.batch import Scorer
    from skyrl_kernel.evaluation import by_source, play
    from skyrl_kernel.protocols import Starts
    from skyrl_kernel.records import Scored
    from skyrl_kernel.rollout.deadline import all_ended
    from skyrl_kernel.run.atomic import write_folder_atomically
    from skyrl_kernel.run.eval_dump import write_eval_dump
    from skyrl_kernel.weight_sync import within_deadline

    plan, checkpoint = subject.plan, subject.checkpoint
    config = plan.tree
    if not config.data.val_data:
        raise UsageError(
            "there is nothing to evaluate on: data.val_data is empty. Give data.val_data=\"['FILE']\""
        )
    evaluator = plan.stages["evaluate"].value
    needs = set(evaluator.needs)
    if checkpoint is not None:  # which a trainer of other parts does not load
        needs |= prepared.score_needs(plan) & {"values"}
    models = prepared.load_models(plan, needs)
    model = models["policy"]
    tokenizer = prepared.make_tokenizer(plan, model)
    data = prepared.load_data(plan, tokenizer, training=False)
    for note in data.notes:
        click.echo(f"warning: {note}", err=True)
    name = config.trainer.runtime
    runtime = plan.manager.make("make_runtime", name, name=name, settings=plan.config)
    step = 0 if checkpoint is None else checkpoint.step
    try:
        trainer = None
        if checkpoint is not None or evaluator.needs:
            trainer = assemble.make_trainer(plan, runtime, models, 1)
            if checkpoint is not None:
                trainer.load(checkpoint.path)
            if plan.hands_over_gpu:  # an engine takes its memory when it starts
                trainer.offload()
        engine = assemble.make_engine(plan, runtime, model)
        rollouts = assemble.make_rollouts(plan, engine, tokenizer, progress)

        async def run() -> "tuple[list[Trajectory], list[Failure]]":
            try:
                if trainer is not None:
                    if isinstance(engine, Starts):
                        await engine.started()
                    stage = assemble.make_sync(plan, runtime)
                    sync = _sync(plan, stage, trainer, engine, step)
                    await within_deadline(sync, plan, step, progress.warning)
                return await play(
                    rollouts,
                    data.val.prompts,
                    size=config.generator.eval_n_samples_per_prompt,
                    sampling=assemble.eval_sampling(config.generator),
                    batch_size=config.trainer.eval_batch_size,
                    step=step,
                )
            finally:
                parts = {"an env": rollouts.close, "the engine": engine.close}
                for problem in await all_ended(parts, config.trainer.close_timeout_s):
                    click.echo(f"warning: {problem}", err=True)

        total = len(data.val) * config.generator.eval_n_samples_per_prompt
        try:
            with progress, progress.stage("evaluate", total=total):
                trajectories, failures = event_loop.run(run(), config.trainer.close_timeout_s)
            if not trajectories:
                raise RunError(
                    f"all {len(failures)} trajectories failed; the first: {failures[0].message}"
                )
            scored = [Scored(trajectory=one, scores=()) for one in trajectories]
            if trainer is not None:
                if plan.hands_over_gpu:  # the engine is gone
                    trainer.onload()
                scored = Scorer(
                    trainer=trainer,
                    needs=evaluator.needs,
                    recompute_old=True,
                    temperature=config.trainer.algorithm.temperature or 1.0,
                ).score(trajectories)
            numbers = by_source(evaluator, scored, failures)
        except SkyrlError:
            raise
        except Exception as error:
            raise plan.manager.attribute(error, "evaluate", step) from error
    finally:
        runtime.close()
    if dump is not None:
        write_folder_atomically(
            dump,
            lambda folder: write_eval_dump(folder, trajectories, numbers, tokenizer),
        )
    return numbers, failures


async def _sync(
    plan: "Plan", stage: "SyncWeights", trainer: "Trainer", engine: "Engine", version: int
) -> None:
    from skyrl_kernel.gpu_sharing import GpuSharing

    async def call(method: Callable[[], None]) -> None:
        method()

    gpu = GpuSharing(plan, engine, trainer, call)
    await gpu.begin_sync()
    await stage(trainer, engine, version)
    await gpu.end_sync()


# --- what is printed ----------------------------------------------------------------------


def _json(
    target: str, step: int | None, numbers: Mapping[str, float], failures: "Sequence[Failure]"
) -> str:
    from skyrl_kernel.json_lines import dump_line

    lost = [{"uid": f.uid, "kind": str(f.kind), "message": f.message} for f in failures]
    record: dict[str, Any] = {"target": target, "step": step, "metrics": numbers, "failures": lost}
    return dump_line(record).rstrip("\n")


def _table(numbers: Mapping[str, float]) -> str:
    """One line per data source, ``all`` last; one column per number."""
    from skyrl_kernel.headline import format_number

    cells: dict[str, dict[str, str]] = {}
    for key, value in numbers.items():
        _, source, name = key.split("/", 2)
        if "/" in name:  # of the rollouts, which --json shows
            continue
        text = f"{value:.0f}" if name in _COUNTS else format_number(value)
        cells.setdefault(source, {})[name] = text
    columns = list(dict.fromkeys(name for row in cells.values() for name in row))
    width = max(len("data source"), *map(len, cells))
    lines = ["  ".join(["data source".ljust(width), *columns])]
    for source in sorted(cells, key=lambda source: (source == "all", source)):
        row = (cells[source].get(name, "").rjust(len(name)) for name in columns)
        lines.append("  ".join([source.ljust(width), *row]).rstrip())
    return "\n".join(lines)
