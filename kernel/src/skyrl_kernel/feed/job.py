"""What a logger's process must know to make its sink: as one line of JSON."""

import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Self

from skyrl_kernel.config import Layers, ResolvedConfig, resolve_config
from skyrl_kernel.config.sources import flatten
from skyrl_kernel.errors import HookError
from skyrl_kernel.feed.sink import Sink
from skyrl_kernel.masking import is_secret_key
from skyrl_kernel.plugins import PluginEntry, PluginManager, discover

CALLS = ("open", "log", "close")
SHORTEST_SECRET = 8
"""Characters; shorter ones would mask ordinary words."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Job:
    """One logger of one run."""

    plugin: str
    """Qualified name, such as ``logger/wandb``."""
    name: str
    folder: str
    """The run's."""
    values: Mapping[str, Any]
    """Dotted key → value: the kernel's tree and the logger's own section, secrets and all."""
    path: Sequence[str]
    """Where plugins are found."""
    back_to: int | None
    """As in `skyrl_kernel.feed.delivery.Delivery`."""

    @classmethod
    def of(
        cls, entry: PluginEntry, config: ResolvedConfig, folder: Path, back_to: int | None
    ) -> Self:
        """The job of a selected logger."""
        values = flatten(config.config.model_dump(mode="json"))
        tree = flatten(config.tree)
        for section in entry.manifest.config:
            values |= {key: tree[key] for key in tree if key.startswith(f"{section}.")}
        return cls(
            plugin=entry.qualified,
            name=entry.name,
            folder=str(folder),
            values=values,
            back_to=back_to,
            path=list(sys.path),
        )

    def dump(self) -> str:
        """One line."""
        return json.dumps(asdict(self)) + "\n"

    @classmethod
    def parse(cls, line: str) -> Self:
        """What `dump` wrote."""
        return cls(**json.loads(line))

    def secrets(self) -> tuple[str, ...]:
        """Values that must not be printed."""
        return tuple(
            value
            for key, value in self.values.items()
            if is_secret_key(key) and isinstance(value, str) and len(value) >= SHORTEST_SECRET
        )

    def load(self) -> tuple[PluginManager, ResolvedConfig]:
        """The plugin, imported in this process, and its config."""
        sys.path.extend(place for place in self.path if place not in sys.path)
        return load_logger(discover().find(self.plugin), self.values)


def load_logger(
    entry: PluginEntry, values: Mapping[str, Any]
) -> tuple[PluginManager, ResolvedConfig]:
    """A logger alone, and its config.

    Args:
        entry: The logger's.
        values: Dotted key → value, as in `Job`.
    """
    manager = PluginManager(discover())
    manager.load([entry])
    layers = Layers(values, dict.fromkeys(values, "the run"))
    return manager, resolve_config(layers, manager.sections(), {})


def make_sink(manager: PluginManager, name: str, config: ResolvedConfig) -> Sink:
    """The logger's sink, checked.

    Raises:
        SkyrlError: The plugin says why it cannot work as configured.
        HookError: What it returned is no sink.
    """
    made = manager.make("make_sink", name, name=name, settings=config)
    lacking = [call for call in CALLS if not callable(getattr(made, call, None))]
    if lacking:
        raise HookError(
            f"hook 'make_sink' of '{name}' returned a {type(made).__name__} without "
            f"{', '.join(lacking)}; a sink has the methods {', '.join(CALLS)} "
            "(skyrl_kernel.feed.Sink)"
        )
    sink: Sink = made
    return sink
