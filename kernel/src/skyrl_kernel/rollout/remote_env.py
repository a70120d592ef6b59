"""Making an env in a child process, from names and config alone."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from skyrl_kernel.env import Env

if TYPE_CHECKING:
    from skyrl_kernel.config import ResolvedConfig
    from skyrl_kernel.plan import Plan
    from skyrl_kernel.plugins import PluginEntry, PluginManager


@dataclass(kw_only=True)
class RemoteFactory:
    """Picklable; in the child it loads the env plugins of the run once, then makes envs.

    The child loads the entries that the parent recorded; it does not choose anew.
    """

    entries: "tuple[PluginEntry, ...]"
    config: "ResolvedConfig"
    _manager: "PluginManager | None" = None

    @classmethod
    def of(cls, plan: "Plan") -> "RemoteFactory":
        """For the envs of a plan."""
        from skyrl_kernel.slots import ENVS

        return cls(
            entries=tuple(entry for entry in plan.entries if entry.group == ENVS),
            config=plan.config,
        )

    def __call__(self, name: str, extras: Mapping[str, Any], max_turns: int | None) -> Env:
        """A fresh env."""
        if self._manager is None:
            from skyrl_kernel.plugins import PluginManager, discover

            self._manager = PluginManager(discover())
            self._manager.load(self.entries)
        env: Env = self._manager.make(
            "make_env", name, name=name, settings=self.config, extras=extras, max_turns=max_turns
        )
        return env
