"""What ``--dry-run`` prints."""

from skyrl_kernel.config.sources import flatten
from skyrl_kernel.masking import mask_secrets
from skyrl_kernel.plan import Plan
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
    """Config with origins, plugins with versions, stages with providers and wrappers, observers."""
    lines = ["config (defaults last)"]
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
    lines.append("observers")
    for hook in _OBSERVED:
        names = [entry.qualified for entry in plan.manager.observers(hook)]
        if names:
            lines.append(f"  {hook}: {', '.join(names)}")
    return "\n".join(lines)
