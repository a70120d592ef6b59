"""The plugin system: what is installed, what is selected, who answers, who is to blame.

Start with `discover`, which imports no plugin; give what you select of its
`Catalog` to a `PluginManager`. Names below are imported on first use, so that
listing plugins loads nothing that only running them needs.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from skyrl_kernel.plugins.attribution import attributed, owner_of
    from skyrl_kernel.plugins.capabilities import check_capabilities, missing_places
    from skyrl_kernel.plugins.catalog import Catalog, PluginEntry
    from skyrl_kernel.plugins.discovery import discover
    from skyrl_kernel.plugins.lock import Lock, diff_locks, locked_entries, plugin_lock
    from skyrl_kernel.plugins.manager import PluginManager
    from skyrl_kernel.plugins.manifest import Manifest
    from skyrl_kernel.plugins.observing import ObserverFailure
    from skyrl_kernel.plugins.stages import Resolved

_HOMES = {
    "Catalog": "catalog",
    "Lock": "lock",
    "Manifest": "manifest",
    "ObserverFailure": "observing",
    "PluginEntry": "catalog",
    "PluginManager": "manager",
    "Resolved": "stages",
    "attributed": "attribution",
    "check_capabilities": "capabilities",
    "diff_locks": "lock",
    "discover": "discovery",
    "locked_entries": "lock",
    "missing_places": "capabilities",
    "owner_of": "attribution",
    "plugin_lock": "lock",
}

__all__ = [
    "Catalog",
    "Lock",
    "Manifest",
    "ObserverFailure",
    "PluginEntry",
    "PluginManager",
    "Resolved",
    "attributed",
    "check_capabilities",
    "diff_locks",
    "discover",
    "locked_entries",
    "missing_places",
    "owner_of",
    "plugin_lock",
]


def __getattr__(name: str) -> Any:
    """Import a public name from its module on first use (PEP 562)."""
    if name not in _HOMES:
        raise AttributeError(f"module '{__name__}' has no attribute '{name}'")
    return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
