"""Calling observers: every one of them, whatever the others do."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from skyrl_kernel.errors import StopRun
from skyrl_kernel.plugins.catalog import PluginEntry
from skyrl_kernel.plugins.stages import Implementation


@dataclass(frozen=True, kw_only=True, slots=True)
class ObserverFailure:
    """One observer raised; the run goes on."""

    plugin: PluginEntry
    """Whose observer."""
    hook: str
    """Which event."""
    error: Exception
    """What it raised, with its traceback."""

    def __str__(self) -> str:
        return (
            f"observer '{self.plugin.name}' ({self.plugin.label}) failed in '{self.hook}': "
            f"{type(self.error).__name__}: {self.error}"
        )


def call_each(
    hook: str, implementations: Sequence[Implementation], kwargs: Mapping[str, object]
) -> list[ObserverFailure]:
    """Call all observers in order; return who failed.

    Raises:
        StopRun: An observer asked for the end of the run. All others were called; the
            failures among them are added to it as notes.
    """
    failures: list[ObserverFailure] = []
    stop: StopRun | None = None
    for implementation in implementations:
        try:
            implementation(kwargs)
        except StopRun as error:
            stop = stop or error
        except Exception as error:
            failure = ObserverFailure(plugin=implementation.owners[0], hook=hook, error=error)
            failures.append(failure)
    if stop is not None:
        for failure in failures:
            stop.add_note(str(failure))
        raise stop
    return failures
