"""skyrl_kernel: the loop and the contracts of RL training for language models.

Everything that may differ between two runs is a plugin; `skyrl_kernel.hookspecs`
lists what a plugin can do. Names below are imported on first use, so that
importing this package costs nothing.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from skyrl_kernel.config.section import Section
    from skyrl_kernel.env import Env, EnvStep, TextEnv
    from skyrl_kernel.hookspecs import hookimpl
    from skyrl_kernel.protocols import Advantage, DataRecipe, Loss, Settings
    from skyrl_kernel.records import Completion, Prompt, Reward, Segment, Trajectory, Turn

__version__ = "0.1.0"

_HOMES = {
    "Advantage": "protocols",
    "Completion": "records",
    "DataRecipe": "protocols",
    "Env": "env",
    "EnvStep": "env",
    "Loss": "protocols",
    "Prompt": "records",
    "Reward": "records",
    "Section": "config.section",
    "Segment": "records",
    "Settings": "protocols",
    "TextEnv": "env",
    "Trajectory": "records",
    "Turn": "records",
    "hookimpl": "hookspecs",
}

__all__ = [
    "Advantage",
    "Completion",
    "DataRecipe",
    "Env",
    "EnvStep",
    "Loss",
    "Prompt",
    "Reward",
    "Section",
    "Segment",
    "Settings",
    "TextEnv",
    "Trajectory",
    "Turn",
    "__version__",
    "hookimpl",
]


def __getattr__(name: str) -> Any:
    """Import a public name from its module on first use (PEP 562)."""
    if name not in _HOMES:
        raise AttributeError(
            f"module 'skyrl_kernel' has no attribute '{name}'; it has: {', '.join(__all__)}"
        )
    return getattr(importlib.import_module(f"skyrl_kernel.{_HOMES[name]}"), name)
