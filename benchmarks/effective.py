"""What a run is set to, as far as it matters: two ways to write one setting are one setting."""

from collections.abc import Mapping
from typing import Any

from skyrl_kernel.config import Config
from skyrl_kernel.plan import Plan
from skyrl_kernel.plugins import discover

CRITIC = "trainer.critic."


def effective(plan: Plan, plugins: list[str], values: Mapping[str, Any]) -> dict[str, Any]:
    """Presets and values as one mapping, without what changes nothing.

    That is what the kernel's defaults say anyway, and how a critic is trained where
    there is none.

    Args:
        plan: Of the run.
        plugins: The ``--plugin`` names it was made with.
        values: The ``key=value`` words.
    """
    merged: dict[str, Any] = {}
    for name in plugins:
        merged |= discover().find(name).manifest.preset
    merged |= values
    defaults = Config().model_dump(mode="json")
    has_critic = "values" in plan.stages["advantage"].value.needs
    return {
        key: value
        for key, value in sorted(merged.items())
        if value != _at(defaults, key) and (has_critic or not key.startswith(CRITIC))
    }


_NOT_THERE = object()


def _at(tree: Mapping[str, Any], key: str) -> Any:
    """The value at a dotted path; something that equals nothing if there is none."""
    value: Any = tree
    for part in key.split("."):
        if not isinstance(value, Mapping) or part not in value:
            return _NOT_THERE
        value = value[part]
    return value
