"""What ``--dry-run`` prints."""

from collections.abc import Iterable, Iterator

from skyrl_kernel.config import Answer, unread_variables
from skyrl_kernel.config.sources import flatten
from skyrl_kernel.feed.feed import sink_plugins
from skyrl_kernel.masking import mask_secrets
from skyrl_kernel.plan import Plan
from skyrl_kernel.prepared import SCORED_BY, score_needs
from skyrl_kernel.processes import ALONE, ROLE_LABELS, alone, ranks_of
from skyrl_kernel.ray.environment import ADDRESS, address
from skyrl_kernel.slots import STAGES

_OBSERVED = (
    "on_run_start",
    "on_step_end",
    "on_eval_end",
    "on_checkpoint",
    "on_failure",
    "on_run_end",
)


def describe_plan(plan: Plan) -> str:
    """What is missing or not read; config with origins, plugins, stages, processes, observers."""
    lines = [*_answers(plan), "config (defaults last)"]
    tree = flatten(mask_secrets(plan.config.tree))
    origins = plan.config.origins
    for key in sorted(tree, key=lambda key: (origins[key] == "default", key)):
        lines.append(f"  {key} = {tree[key]!r}  [{origins[key]}]")
    lines.append("plugins (in call order)")
    for entry in plan.manager.entries:
        lines.append(f"  {entry.qualified}  {entry.distribution} {entry.version}  {entry.value}")
    lines.append("stages")
    for slot in STAGES:
        stage = plan.stages[slot.hook]
        layers = "".join(f" < wrapped by {wrapper.qualified}" for wrapper in stage.wrappers)
        lines.append(f"  {slot.hook}: {stage.provider.qualified}{layers}  [{slot.key}]")
    lines += _section("processes", _processes(plan))
    lines.append("observers")
    for hook in _OBSERVED:
        names = [entry.qualified for entry in plan.manager.observers(hook)]
        if names:
            lines.append(f"  {hook}: {', '.join(names)}")
    stores = [entry.qualified for entry in sink_plugins(plan)]
    if stores:
        lines.append(f"stores, fed behind the run: {', '.join(stores)}")
    return "\n".join(lines)


def _processes(plan: Plan) -> Iterator[str]:
    """Those of the runtime `ray` beside this one; nothing of others."""
    trainer, engine = plan.tree.trainer, plan.tree.generator.inference_engine
    placement = trainer.placement
    if trainer.runtime != "ray":
        return
    named = address()
    yield f"ray: the cluster {ADDRESS}={named}" if named else "ray: the run's own, on this machine"
    yield "ranks of the trainer: {} × {}".format(*ranks_of(placement, "policy"))
    needs = score_needs(plan)
    for role in alone(placement):
        if SCORED_BY[role] in needs:
            yield f"of the {ROLE_LABELS[role]}: {{}} × {{}}".format(
                *ranks_of(placement, ALONE[role])
            )
    if engine.external_server_urls:
        where = "which run already"
    elif placement.colocate_all:
        where = "on the trainer's devices"
    else:
        where = "on devices of their own"
    yield f"engines: {engine.num_engines}, {where}"
    if plan.rank_sync is not None:
        each, first = "each rank to the engine on its own device", "the first rank to all engines"
        yield f"weights: from {each if plan.rank_sync.by_each else first}, through {plan.rank_sync.name}"


def _answers(plan: Plan) -> Iterator[str]:
    """SkyRL's keys and variables that nothing here reads; those that a run needs come first."""
    yield from _section(
        "not built yet (docs/roadmap.md): without --dry-run refused", plan.config.not_yet
    )
    yield from _section("missing here: without --dry-run refused", plan.missing)
    yield from _section("not read", plan.config.not_read)
    yield from _section("environment variables not read", unread_variables())
    yield from _section("overruled", plan.overruled)


def _section(title: str, answers: Iterable[Answer | str]) -> Iterator[str]:
    lines = [f"  {answer}" for answer in answers]
    if lines:
        yield from [title, *lines]
