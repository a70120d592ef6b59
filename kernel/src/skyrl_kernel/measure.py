"""The numbers of a step, gathered: what is measured in `skyrl_kernel.metrics` and its neighbours."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from numbers import Real

from skyrl_kernel import metrics
from skyrl_kernel.clock import Clock
from skyrl_kernel.credited import Credited
from skyrl_kernel.errors import HookError
from skyrl_kernel.producer import Batch
from skyrl_kernel.records import Group, UpdateResult
from skyrl_kernel.rollout_metrics import generation_metrics, group_time_metrics, merge_metrics
from skyrl_kernel.score_metrics import (
    MISMATCH,
    kl_metrics,
    mismatch_metrics,
    mismatch_of_update,
)
from skyrl_kernel.session import Session

_AREAS = frozenset({"reward", "generate", "environment"})


@dataclass(frozen=True, kw_only=True, slots=True)
class Measured:
    """What is told of a step before its updates."""

    numbers: Mapping[str, float]
    """The kernel's."""
    credit: Mapping[str, float]
    """The stage `advantage`'s own."""
    measured_by: str
    """The plugin that measured ``credit``."""
    num_tokens: int
    """Of all rows, prompts included."""
    num_devices: int
    """GPUs, or ranks without one, that train the policy."""

    def complete(self, results: Sequence[UpdateResult], clock: Clock) -> dict[str, float]:
        """Everything that is told of the step, the evaluation and the seconds of its stages aside."""
        is_known = f"{MISMATCH}_mean" in self.numbers
        numbers = {
            **self.numbers,
            "trainer/tokens_per_second_per_gpu": self.num_tokens
            / (clock.seconds["train_critic_and_policy"] * self.num_devices),
            **metrics.update_metrics(results),
            **({} if is_known else mismatch_of_update(results[0])),
        }
        refuse_taken(self.credit, numbers, self.measured_by)
        return {**numbers, **self.credit}


def measure(run: Session, step: int, batch: Batch, credited: Credited) -> Measured:
    """The numbers of what a step trains on."""
    trajectories = credited.trajectories
    algorithm = run.config.algorithm
    numbers = {
        "trainer/global_step": float(step),
        "trainer/epoch": float(run.epoch(step)),
        **metrics.reward_metrics(batch.groups),
        **generation_metrics(trajectories),
        **group_time_metrics(batch.groups),
        **metrics.failure_metrics(batch),
        **metrics.advantage_metrics(credited),
        **metrics.async_metrics(batch, step - 1, run.config.max_staleness),
    }
    if "ref_logprobs" in run.scorer.needs:
        numbers |= kl_metrics(credited, algorithm.kl_estimator_type)
    if run.scorer.recompute_old:
        numbers |= mismatch_metrics(credited)
    if "kl" in run.loss.coefficients:
        numbers["loss/kl_loss_coef"] = run.loss.coefficients["kl"]
    if algorithm.zero_variance_filter:
        numbers |= metrics.filter_metrics(batch)
    if run.plan.tree.generator.merge_stepwise_output:
        numbers |= merge_metrics(trajectories)
    if batch.dropped:
        numbers |= dropped_metrics([group for group, _ in batch.dropped])
    with run.stage("advantage", step):
        credit = dict(run.advantage.measure(credited))
    who = str(run.plan.stages["advantage"])
    refuse_names(credit, who)
    placement = run.config.placement
    return Measured(
        numbers=numbers,
        credit=credit,
        measured_by=who,
        num_tokens=sum(credited.lengths),
        num_devices=placement.policy_num_nodes * placement.policy_num_gpus_per_node,
    )


def refuse_names(metrics: Mapping[str, float], who: str) -> None:
    """Metrics of a plugin are called as the kernel's are, and are numbers.

    Raises:
        HookError: Names the plugin and the metric.
    """
    for name, value in metrics.items():
        area, slash, rest = str(name).partition("/")
        if not (isinstance(name, str) and area and slash and rest):
            raise HookError(
                f"{who} measures {name!r}; a metric is called AREA/NAME, such as 'loss/{name}'"
            )
        if not isinstance(value, Real):
            raise HookError(f"{who} measures {name} = {value!r}; needed: a number")


def refuse_taken(metrics: Mapping[str, float], taken: Mapping[str, float], who: str) -> None:
    """What a plugin measures must not stand for what the kernel does.

    Raises:
        HookError: Names the plugin and the metric.
    """
    if both := sorted(metrics.keys() & taken.keys()):
        raise HookError(
            f"{who} measures {', '.join(both)}, which the kernel measures itself; use another name"
        )


def dropped_metrics(groups: Sequence[Group]) -> dict[str, float]:
    """``reward_dropped/…``, ``generate_dropped/…``, ``environment_dropped/…``: of groups not trained on.

    Args:
        groups: Those that the stage `select` refused.

    Returns:
        What is told of the batch under the same names without ``_dropped``.
    """
    trajectories = [one for group in groups for one in group.trajectories]
    numbers = {
        **metrics.reward_metrics(groups),
        **generation_metrics(trajectories),
        **group_time_metrics(groups),
    }
    parts = ((*name.partition("/"), value) for name, value in numbers.items())
    return {f"{area}_dropped/{name}": value for area, _, name, value in parts if area in _AREAS}
