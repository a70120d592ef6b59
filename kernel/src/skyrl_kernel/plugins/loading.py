"""Importing one selected plugin, and saying whose fault it is if that fails."""

import importlib
from types import ModuleType

from skyrl_kernel.errors import PluginLoadError
from skyrl_kernel.plugins.catalog import PluginEntry
from skyrl_kernel.plugins.wording import listed


def import_plugin(entry: PluginEntry) -> ModuleType:
    """Import the module that an entry point names.

    What its metadata already rules out (another kernel, a broken
    ``plugin.toml``, a name claimed twice) is refused before anything of it runs.

    Raises:
        PluginLoadError: Names plugin, distribution, version, reason and what to do.
    """
    if entry.problems:
        raise PluginLoadError(f"{entry} cannot be loaded: {'; '.join(entry.problems)}")
    try:
        return importlib.import_module(entry.value)
    except ModuleNotFoundError as error:
        raise PluginLoadError(f"{entry} {_missing(entry, error)}") from error
    except (Exception, SystemExit) as error:  # a plugin's module may do anything when imported
        raise PluginLoadError(
            f"{entry} failed while importing {entry.value}: {type(error).__name__}: {error}. "
            f"That is a fault of {entry.distribution}, not of your command; try another version "
            "of it, or leave the plugin out."
        ) from error


def _missing(entry: PluginEntry, error: ModuleNotFoundError) -> str:
    missing = error.name or str(error)
    if missing.partition(".")[0] == entry.package:
        return (
            f"lacks its own module '{missing}': the installation is incomplete. "
            f"pip install --force-reinstall {entry.distribution}"
        )
    text = f"needs the module '{missing}', which is not installed."
    if entry.extras:
        choices = listed(f'"{entry.distribution}[{extra}]"' for extra in entry.extras)
        return f"{text} It may come with an extra: pip install {choices}"
    return f"{text} Install what provides it; {entry.distribution} should have required it."
