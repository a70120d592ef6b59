"""``skyrl log``: bring what a run's loggers missed to their stores, from the run folder alone."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from skyrl_kernel.errors import RunError, SkyrlError, UsageError

if TYPE_CHECKING:
    from skyrl_kernel.plugins import Catalog, PluginEntry
    from skyrl_kernel.run import RunFolder

_SHARED = (
    "trainer.project_name",
    "trainer.run_name",
    "trainer.tags",
    "trainer.num_logger_train_samples",
    "trainer.num_logger_eval_samples",
)
"""Keys of the kernel that say what a store is given."""


@click.command("log")
@click.option(
    "--plugin",
    "plugins",
    multiple=True,
    metavar="NAME",
    help="A logger, whether the run had it or not; default: those of the run. May be repeated.",
)
@click.argument("run", type=click.Path(path_type=Path))
@click.argument("overrides", nargs=-1, metavar="[KEY=VALUE]...")
def log(run: Path, plugins: tuple[str, ...], overrides: tuple[str, ...]) -> None:
    """Deliver a run to the stores of loggers, from its folder.

    \b
    skyrl log runs/demo                      what the run's loggers have missed
    skyrl log runs/demo --plugin mlflow      the whole run, to a logger that it did not have
    skyrl log runs/demo --plugin wandb trainer.wandb.mode=online

    What a store was given before is not sent again.
    """  # noqa: D301 -- click's \\b
    from skyrl_kernel.plugins import discover
    from skyrl_kernel.run import RunFolder

    folder = RunFolder(run.expanduser())
    if not folder.config.is_file():
        raise UsageError(f"{run} is no run folder: it has no config.yaml")
    catalog = discover()
    entries = _loggers(catalog, folder, plugins)
    given = _read(overrides, catalog, entries)
    with RunFolder.create(folder.path) as folder:  # refused while the run is going on
        for entry in entries:
            _deliver(catalog, folder, entry, given)


def _loggers(catalog: "Catalog", folder: "RunFolder", named: Sequence[str]) -> "list[PluginEntry]":
    """The loggers with a store: those named, or the run's."""
    from skyrl_kernel.plugins import PluginManager
    from skyrl_kernel.slots import LOGGERS, PLUGINS

    recorded = folder.read_config()["trainer"]["logger"]
    names = dict.fromkeys(named or ([recorded] if isinstance(recorded, str) else recorded))
    entries = [catalog.find(name, (LOGGERS, PLUGINS)) for name in names]
    manager = PluginManager(catalog)
    manager.load(entries)
    modules = {entry.value for entry in manager.observers("make_sink")}
    without = [entry.name for entry in entries if entry.value not in modules]
    if named and without:
        raise UsageError(
            f"logger '{without[0]}' has no store to deliver to: it only watches a run that is going "
            "on ('skyrl plugins list' lists the others)"
        )
    found = [entry for entry in entries if entry.value in modules]
    if not found:
        raise UsageError(
            f"the loggers of {folder.path} ({', '.join(names)}) have no store to deliver to; name one "
            "that has, such as: --plugin tensorboard"
        )
    return found


def _read(
    overrides: Sequence[str], catalog: "Catalog", entries: "Sequence[PluginEntry]"
) -> Mapping[str, Any]:
    """The ``KEY=VALUE`` words; each of them must matter to one of the loggers."""
    from skyrl_kernel.config.sources import read_overrides

    given = read_overrides(overrides)
    sections = [section for entry in entries for section in _sections(catalog, entry)]
    for key in given:
        if key not in _SHARED and not _is_in(key, sections):
            raise UsageError(
                f"{key} changes nothing that {', '.join(entry.name for entry in entries)} would be given; "
                f"there are {', '.join([*(f'{section}.…' for section in sections), *_SHARED])}"
            )
    return given


def _sections(catalog: "Catalog", entry: "PluginEntry") -> list[str]:
    """Config sections of the logger's module, which may have several names."""
    return [
        section for one in catalog if one.value == entry.value for section in one.manifest.config
    ]


def _is_in(key: str, sections: Sequence[str]) -> bool:
    return any(key.startswith(f"{section}.") for section in sections)


def _deliver(
    catalog: "Catalog", folder: "RunFolder", entry: "PluginEntry", given: Mapping[str, Any]
) -> None:
    from skyrl_kernel.feed import Delivery, LogEnd
    from skyrl_kernel.feed.backlog import LOGGERS
    from skyrl_kernel.feed.job import load_logger, make_sink
    from skyrl_kernel.feed.journal import Journal
    from skyrl_kernel.progress import Progress, say

    manager, config = load_logger(entry, _values(catalog, folder, entry, given))
    delivery = Delivery(
        folder,
        entry.name,
        lambda: make_sink(manager, entry.name, config),
        config.config.trainer,
    )
    missing = delivery.missing()
    total = len(folder.read_metrics())
    delivered = 0
    try:
        with Progress(f"log {entry.name}", len(missing), lines=False) as progress:
            for _ in delivery.catch_up(ended=True):
                delivered += 1
                progress.step(delivered, {})
            end = Journal(folder.path / LOGGERS).last_end()
            delivery.close(end or LogEnd(status="interrupted", message="the run was killed"))
    except SkyrlError:
        raise
    except Exception as error:
        raise RunError(
            f"logger '{entry.name}' ({entry.label}) failed: {type(error).__name__}: {error}. It has "
            f"{total - len(delivery.missing())} of {total} steps; the same command delivers the rest"
        ) from error
    say(f"{entry.name}: delivered {delivered} steps, and has all {total} of {folder.path}")


def _values(
    catalog: "Catalog", folder: "RunFolder", entry: "PluginEntry", given: Mapping[str, Any]
) -> Mapping[str, Any]:
    """The run's config without the sections of other plugins; secrets, which it lacks, anew."""
    from skyrl_kernel.config.sources import flatten
    from skyrl_kernel.masking import MASK

    own = _sections(catalog, entry)
    foreign = tuple(
        f"{section}." for one in catalog for section in one.manifest.config if section not in own
    )
    recorded = flatten(folder.read_config())
    given = {k: v for k, v in given.items() if k in _SHARED or _is_in(k, own)}
    values = {k: v for k, v in recorded.items() if not k.startswith(foreign)} | given
    hidden = [key for key, value in values.items() if value == MASK]
    if hidden:
        raise UsageError(
            f"{folder.config} does not hold the secrets of the run: give {', '.join(hidden)} again, "
            "as key=value"
        )
    return values
