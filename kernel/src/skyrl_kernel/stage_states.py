"""What stages remember from step to step, into a checkpoint and back."""

from collections.abc import Mapping
from typing import Any

from skyrl_kernel.errors import HookError
from skyrl_kernel.plan import Plan
from skyrl_kernel.plugins.attribution import module_owner
from skyrl_kernel.protocols import Advantage
from skyrl_kernel.run.checkpoint import dump_json


def stage_states(plan: Plan, step: int | None = None) -> dict[str, Any]:
    """Hook → what its stage remembers now.

    Args:
        plan: Has the stages.
        step: For messages; None: before the first.

    Raises:
        PluginError: A ``state_dict`` raised.
        HookError: What one returned does not come back from a checkpoint; names its plugin.
    """
    states = {}
    for hook, resolved in plan.stages.items():
        if not hasattr(resolved.value, "state_dict"):
            continue
        try:
            states[hook] = resolved.value.state_dict()
        except Exception as error:
            raise plan.manager.attribute(error, hook, step, provider=resolved.provider) from error
        parts = resolved.value.state if isinstance(resolved.value, Advantage) else {}
        for name, part in states[hook].items():
            try:
                dump_json(part, f"state['{name}']")
            except TypeError as error:
                owner = module_owner(type(parts.get(name)).__module__, plan.manager.entries)
                raise HookError(
                    f"{owner or resolved.provider}: its hook '{hook}' remembers what no checkpoint "
                    f"keeps: {error}. Keep numbers, text, lists and tables with text keys"
                ) from error
    return states


def bring_back(plan: Plan, states: Mapping[str, Any]) -> None:
    """Let the stages go on from what `stage_states` gave.

    Raises:
        PluginError: A ``load_state_dict`` raised.
    """
    for hook, saved in states.items():
        resolved = plan.stages[hook]
        try:
            resolved.value.load_state_dict(saved)
        except Exception as error:
            raise plan.manager.attribute(error, hook, None, provider=resolved.provider) from error
