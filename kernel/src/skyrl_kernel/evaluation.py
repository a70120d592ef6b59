"""Held-out prompts through the same stages, with the evaluation's own sampling."""

import asyncio
from collections.abc import Mapping, Sequence

from skyrl_kernel.clock import Clock
from skyrl_kernel.errors import FailureBudgetError, HookError
from skyrl_kernel.protocols import Evaluate
from skyrl_kernel.records import Failure, Group, Prompt, Sampling, Scored, Trajectory
from skyrl_kernel.rollout.driver import Rollouts
from skyrl_kernel.rollout_metrics import ending_metrics, length_metrics
from skyrl_kernel.run.eval_dump import source_name, write_eval_dump
from skyrl_kernel.session import Session


async def evaluate(run: Session, *, step: int, clock: Clock) -> dict[str, float]:
    """Evaluate the engine's weights, tell the observers, and return the metrics.

    Args:
        run: Everything.
        step: After which.
        clock: Takes the time of ``eval_generate``.

    Returns:
        ``eval/<source>/<name>`` for each data source and for ``all``, and what the
        engine counted; empty if there is nothing to evaluate on.
    """
    if not run.val_prompts:
        return {}
    with run.stage("evaluate", step, total=len(run.val_prompts) * run.eval_samples):
        with clock("eval_generate"):
            trajectories, failures = await play(
                run.rollouts,
                run.val_prompts,
                size=run.eval_samples,
                sampling=run.eval_sampling,
                batch_size=run.eval_batch_size,
                step=step,
            )
        if failures and len(failures) > run.max_failed_frac * (len(failures) + len(trajectories)):
            raise FailureBudgetError(
                f"evaluation at step {step}: {len(failures)} of {len(failures) + len(trajectories)} "
                f"trajectories failed, more than trainer.max_failed_frac={run.max_failed_frac:g} "
                f"allows; the first: {failures[0].message}",
                failures,
            )
        scored = await run.score_evaluation(trajectories)
        numbers = by_source(run.evaluate, scored, failures)
        if run.config.dump_eval_results:
            _dump(run, step, trajectories, numbers)
    counted = await run.engine_counts("eval", clock.seconds["eval_generate"])
    run.report_evaluation(step, numbers, counted, trajectories, failures)
    return numbers | counted


def _dump(
    run: Session, step: int, trajectories: Sequence[Trajectory], numbers: Mapping[str, float]
) -> None:
    run.folder.write_aside(
        run.folder.eval_dump(step),
        lambda folder: write_eval_dump(folder, trajectories, numbers, run.tokenizer),
    )


async def play(
    rollouts: Rollouts,
    prompts: Sequence[Prompt],
    *,
    size: int,
    sampling: Sampling,
    batch_size: int,
    step: int,
) -> tuple[list[Trajectory], list[Failure]]:
    """Roll out every prompt ``size`` times, ``batch_size`` prompts at a time.

    An error that ends the run ends all of them.
    """
    groups: list[Group] = []
    for start in range(0, len(prompts), batch_size):
        tasks = [
            rollouts.start(
                prompt, index=start + place, step=step, size=size, phase="eval", sampling=sampling
            )
            for place, prompt in enumerate(prompts[start : start + batch_size])
        ]
        try:
            groups += await asyncio.gather(*tasks)
        except BaseException:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            raise
    return (
        [one for group in groups for one in group.trajectories],
        [failure for group in groups for failure in group.failures],
    )


def by_source(
    evaluate: Evaluate, scored: Sequence[Scored], failures: Sequence[Failure]
) -> dict[str, float]:
    """Metrics per data source (``/`` in its name becomes ``_``, none is ``unknown``) and over all."""
    sources: dict[str, list[Scored]] = {}
    for one in scored:
        sources.setdefault(source_name(one.trajectory), []).append(one)
    named: Mapping[str, Sequence[Scored]] = {**sources, "all": scored}
    numbers: dict[str, float] = {}
    for source, members in named.items():
        found = evaluate(members)
        if not isinstance(found, Mapping):
            raise HookError(
                f"the evaluate stage returned a {type(found).__name__}; it must return a mapping of numbers"
            )
        numbers |= {f"eval/{source}/{name}": float(value) for name, value in found.items()}
    played = [one.trajectory for one in scored if one.trajectory.turns]
    if played:
        lengths = length_metrics(played) | ending_metrics(played)
        numbers |= {f"eval/all/{name}": value for name, value in lengths.items()}
    numbers["eval/all/failed"] = float(len(failures))
    return numbers
