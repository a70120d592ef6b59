"""The loop: generate → reward → select → score → advantage → loss → sync_weights.

The producer (`skyrl_kernel.producer`) generates, rewards and selects as far
ahead as ``max_staleness`` lets it; this is the consumer. With
``max_staleness=0`` the two take turns, which is synchronous training. There is
no other loop: SFT, evaluation runs and asynchronous training pass through here
with other callables.
"""

from collections.abc import Sequence

from skyrl_kernel import metrics
from skyrl_kernel.batch import credit, training_samples
from skyrl_kernel.clock import Clock
from skyrl_kernel.errors import StopRun
from skyrl_kernel.evaluation import evaluate
from skyrl_kernel.measure import measure
from skyrl_kernel.producer import Batch
from skyrl_kernel.protocols import CreditedGroup
from skyrl_kernel.records import UpdateResult
from skyrl_kernel.session import Session


async def train(run: Session) -> int:
    """Train until the last step, or until an observer says stop.

    Args:
        run: Everything the loop calls, made and resumed already.

    Returns:
        The last step that was finished.
    """
    step = run.first_step - 1
    with run.stage("sync_weights", step):
        await run.sync(step)
    await run.engine_counts("train", 0.0)  # what was counted before the first step
    if step == 0 and run.eval_before_train:
        await evaluate(run, step=0, clock=Clock())
    saving = Clock()
    while step < run.total_steps:
        step += 1
        clock = Clock()
        with clock("step"):
            with clock("generate"), run.stage("generate", step, total=run.rollouts_per_step):
                batch = await run.producer.batch(step)
            with clock("fwd_logprobs_values_reward"), run.stage("score", step):
                await run.gpu.to_trainer()
                scored = await run.compute(run.scorer, batch.groups)
            with clock("compute_advantages_and_returns"), run.stage("advantage", step):
                credited = credit(run.advantage, scored, _masked_places(batch))
            # Here, where all that they read was just written: after an update the processor has
            # forgotten it, and they take twice as long.
            measured = measure(run, step, batch, credited)
            run.keep(step, batch, credited)
            with (
                clock("train_critic_and_policy"),
                clock("policy_train"),
                run.stage("loss", step, total=run.updates_per_step),
            ):
                results = await update(run, credited, clock)
            with clock("sync_weights"), run.stage("sync_weights", step):
                await run.sync(step)
        numbers = measured.complete(results, clock)
        numbers |= await run.engine_counts("train", clock.seconds["generate"])
        numbers |= run.machine_numbers()
        if run.eval_due(step):
            with clock("eval"):
                numbers |= await evaluate(run, step=step, clock=clock)
        times = metrics.timing_metrics(saving.seconds | clock.seconds, ahead=run.is_ahead)
        run.report(step, batch, credited, results, numbers | times)
        saving = Clock()
        await run.save(step, saving)
        if run.stop:
            raise StopRun(run.stop)
        run.admission.advance()  # last, so that synchronous runs evaluate and save undisturbed
    return step


async def update(
    run: Session, credited: Sequence[CreditedGroup], clock: Clock
) -> list[UpdateResult]:
    """One optimizer step per mini-batch, ``update_epochs_per_batch`` times over."""
    with clock("convert_to_training_input"):
        minibatches = [
            training_samples(
                credited[start : start + run.mini_batch_size], run.reduction, run.loss.coefficients
            )
            for start in range(0, len(credited), run.mini_batch_size)
        ]
    return [
        await run.compute(run.update, samples)
        for _ in range(run.epochs_per_batch)
        for samples in minibatches
    ]


def _masked_places(batch: Batch) -> frozenset[int]:
    return frozenset(
        place for place, group in enumerate(batch.groups) if group.index in batch.masked
    )
