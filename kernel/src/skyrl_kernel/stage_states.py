"""What stages remember from step to step, into a checkpoint and back."""

from collections.abc import Iterator, Mapping
from typing import Any

from skyrl_kernel.errors import HookError
from skyrl_kernel.plan import Plan
from skyrl_kernel.plugins.attribution import module_owner
from skyrl_kernel.plugins.catalog import PluginEntry
from skyrl_kernel.plugins.stages import Resolved
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
        for part, what, owner in _parts(resolved, states[hook], plan):
            try:
                dump_json(part, what)
            except TypeError as error:
                raise HookError(
                    f"{owner}: its hook '{hook}' remembers what no checkpoint keeps: {error}. "
                    "Keep numbers, text, lists and tables with text keys"
                ) from error
    return states


def _parts(resolved: Resolved, state: Any, plan: Plan) -> Iterator[tuple[Any, str, PluginEntry]]:
    """What a stage remembers, what to call it, and whose it is: an advantage's parts have owners each."""
    if not isinstance(resolved.value, Advantage):
        yield state, "state_dict()", resolved.provider
        return
    for name, part in resolved.value.state.items():
        owner = module_owner(type(part).__module__, plan.manager.entries)
        yield state[name], f"state['{name}']", owner or resolved.provider


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
