"""Whether a process has the plugins of the run, file by file.

Entry points are found in each process anew, and the environments of two processes can differ:
by node, by image, by what somebody changed meanwhile. Each process loads from the controller's
lock, looks at what it has under those names, and reports it; training begins only if all of it
is the same.
"""

import platform
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from skyrl_kernel.errors import PluginLoadError
from skyrl_kernel.plugins import Lock, diff_locks, locked_entries, plugin_lock
from skyrl_kernel.plugins.lock import kernel_record


@dataclass(frozen=True, kw_only=True, slots=True)
class Report:
    """What a process has."""

    lock: Lock
    problem: str
    """Why it cannot even look; empty if it could."""
    python: str
    """Version."""
    executable: str
    node: str
    """Name of its machine."""


def report(lock: Sequence[Mapping[str, Any]]) -> Report:
    """What this process has of a run's plugins, none of them imported."""
    problem, entries = "", []
    for record in lock:
        try:
            entries += locked_entries([record])
        except PluginLoadError as error:
            problem = str(error)
    return Report(
        lock=[kernel_record(), *plugin_lock(entries)],
        problem=problem,
        python=platform.python_version(),
        executable=sys.executable,
        node=platform.node(),
    )


def require_same(lock: Sequence[Mapping[str, Any]], found: Report, who: str) -> None:
    """Refuse a process that has something else than the run.

    Args:
        lock: The controller's, of the plugins that the process loads.
        found: What the process has.
        who: The process.

    Raises:
        PluginLoadError: With a line for each difference.
    """
    changes = diff_locks([kernel_record(), *lock], found.lock)
    if not changes:
        return
    listed = "".join(f"\n  {change}" for change in changes)
    remedy = f"\n{found.problem}" if found.problem else ""
    raise PluginLoadError(
        f"{who} on {found.node} ({found.executable}, Python {found.python}) has other plugins than this "
        f"run, controller → process:{listed}{remedy}\nInstall the same versions there, or start the run "
        "from the environment that it has"
    )
