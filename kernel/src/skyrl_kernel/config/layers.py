"""What presets, files and the command line set, merged by precedence but not yet checked.

Precedence: kernel defaults < presets < files < ``key=value``.
"""

import contextlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError

from skyrl_kernel.config.compat import Answer, renamed, shown, table
from skyrl_kernel.config.sources import flatten, read_file, read_overrides, unflatten
from skyrl_kernel.config.tree import Config
from skyrl_kernel.errors import ConfigError


@dataclass(frozen=True, slots=True)
class Layers:
    """What was set, before anything is checked."""

    values: Mapping[str, Any]
    """Dotted key → value."""
    origins: Mapping[str, str]
    """Dotted key → ``preset NAME``, ``file PATH`` or ``command line``."""
    replaced: tuple[Answer, ...] = ()
    """Names that no installed plugin has; the defaults stand in ``values`` for them."""

    def get(self, key: str) -> Any:
        """The value of a key of the kernel's tree, its default included, as the tree's type.

        Of a key of a plugin's section only what was set, None otherwise. A value that
        does not fit its type is returned as it is: `resolve_config` refuses it.
        """
        if key in self.values:
            return _as_typed(key, self.values[key])
        below = self._below(key)
        if below:
            return below
        node: Any = _defaults()
        for part in key.split("."):
            node = getattr(node, part, None)
        return node

    def asked(self, key: str) -> Any:
        """What was asked for: of SkyRL's other keys too, and of names that were replaced."""
        for answer in self.replaced:
            if answer.name == key:
                return answer.value
        row = table().row(key)
        if row is None:
            return self.get(key)
        if key in self.values:
            with contextlib.suppress(ValueError):  # which `resolve_config` refuses
                return row.typed(key, self.values[key])
        default = row.default_of(key)
        return self._below(key) or (None if default is ... else default)

    def _below(self, key: str) -> dict[str, Any]:
        """What is set below a key."""
        start = f"{key}."
        return unflatten(
            {k[len(start) :]: v for k, v in self.values.items() if k.startswith(start)}
        )


BEFORE = ", before "
"""In an origin: whose preset wanted something else."""


def merge_layers(
    presets: Sequence[tuple[str, Mapping[str, Any]]],
    files: Iterable[Path] = (),
    overrides: Iterable[str] = (),
    *,
    slots: Mapping[str, Sequence[str]] | None = None,
) -> Layers:
    """Merge all layers by precedence, each key under its name here.

    Args:
        presets: (plugin name, flat values) of each ``--plugin``.
        files: Config files, later ones win.
        overrides: ``key=value`` words, later ones win.
        slots: Plugin name → the keys that it is there to fill. Its preset's value of
            such a key goes before those of presets that only choose among others.

    Raises:
        ConfigError: A file or word is malformed, or presets differ on keys that
            neither a file nor a word sets.
    """
    values: dict[str, Any] = {}
    origins: dict[str, str] = {}

    def put(layer: Mapping[str, Any], origin: str) -> None:
        named = renamed(layer)
        for key in [key for key in values if any(_replaces(new, key) for new in named)]:
            del values[key], origins[key]
        for key, (written, value) in named.items():
            values[key] = value
            origins[key] = origin if written == key else f"{origin}, as {written}"

    for path in files:
        put(read_file(path), f"file {path}")
    put(read_overrides(overrides), "command line")
    wishes: dict[str, list[tuple[str, Any]]] = {}
    for name, preset in presets:
        for key, (_, value) in renamed(flatten(preset)).items():
            if not any(_replaces(new, key) for new in values):
                wishes.setdefault(key, []).append((name, value))
    clashes = []
    for key, wished in wishes.items():
        owners = [(name, value) for name, value in wished if key in (slots or {}).get(name, ())]
        first, *others = owners or wished
        clashes += [_clash(key, first, other) for other in others if other[1] != first[1]][:1]
        values[key], origins[key] = first[1], f"preset {first[0]}"
        lost = [f"{value} of {name}" for name, value in wished if value != first[1]]
        if lost:
            origins[key] += f"{BEFORE}{', '.join(lost)}"
    if clashes:
        raise ConfigError("\n".join(clashes))
    return Layers(values, origins)


def _clash(key: str, one: tuple[str, Any], other: tuple[str, Any]) -> str:
    return (
        f"the presets of '{one[0]}' and '{other[0]}' differ on {key}: "
        f"{one[1]!r} and {other[1]!r}; choose by {key}=…"
    )


def settle_names(layers: Layers, is_installed: Callable[[str, str], bool]) -> Layers:
    """Take out the names that SkyRL has and no installed plugin; the defaults stand in for them.

    Args:
        layers: What was set.
        is_installed: Takes a key and a name; true if a plugin answers to it.
    """
    values, origins = dict(layers.values), dict(layers.origins)
    replaced = []
    for key, name in table().values:
        if key not in values:
            continue
        value = values[key] if isinstance(values[key], list) else layers.get(key)
        names = value if isinstance(value, list) else [value]
        if name not in map(shown, names) or is_installed(key, name):
            continue
        row = table().values[key, name]
        replaced.append(Answer(name=key, value=name, origin=layers.origins[key], row=row))
        left = [one for one in names if shown(one) != name]
        if left:
            values[key] = left
        else:
            del values[key]
            origins[key] = "default, since " + (
                f"{name} is not there yet" if value is True else f"there is no '{name}'"
            )
    return Layers(values, origins, tuple(replaced))


@cache
def _defaults() -> Config:
    return Config()


def _replaces(new: str, old: str) -> bool:
    """True if setting ``new`` later makes an earlier ``old`` void: the same key, or one below it."""
    return new == old or old.startswith(f"{new}.")


def _as_typed(key: str, value: Any) -> Any:
    model: Any = Config
    for part in key.split("."):
        field_info = model.model_fields.get(part) if hasattr(model, "model_fields") else None
        if field_info is None:
            return value
        model = field_info.annotation
    try:
        return TypeAdapter(model).validate_python(value)
    except ValidationError:
        return value
