"""Layers of values become one checked config, and every value knows where it came from.

Precedence: kernel defaults < presets < files < ``key=value``.
"""

import difflib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, TypeAdapter, ValidationError

from skyrl_kernel.config.sources import flatten, read_file, read_overrides, unflatten
from skyrl_kernel.config.tree import KERNEL_SECTIONS, Config
from skyrl_kernel.errors import ConfigError

SectionT = TypeVar("SectionT", bound=BaseModel)

_SHOWN_KEYS = 6


@dataclass(frozen=True, slots=True)
class Layers:
    """What was set, before anything is checked."""

    values: Mapping[str, Any]
    """Dotted key → value."""
    origins: Mapping[str, str]
    """Dotted key → ``preset NAME``, ``file PATH`` or ``command line``."""

    def get(self, key: str) -> Any:
        """The value of a key of the kernel's tree, its default included, as the tree's type.

        A value that does not fit its type is returned as it is: `resolve_config`
        refuses it.
        """
        if key in self.values:
            return _as_typed(key, self.values[key])
        below = {k[len(key) + 1 :]: v for k, v in self.values.items() if k.startswith(f"{key}.")}
        if below:
            return unflatten(below)
        node: Any = Config()
        for part in key.split("."):
            node = getattr(node, part)
        return node


def merge_layers(
    presets: Sequence[tuple[str, Mapping[str, Any]]],
    files: Iterable[Path] = (),
    overrides: Iterable[str] = (),
) -> Layers:
    """Merge all layers by precedence.

    Args:
        presets: (plugin name, flat values) of each ``--plugin``.
        files: Config files, later ones win.
        overrides: ``key=value`` words, later ones win.

    Raises:
        ConfigError: A file or word is malformed, or two presets differ on a key
            that neither a file nor a word sets.
    """
    values: dict[str, Any] = {}
    origins: dict[str, str] = {}

    def put(layer: Mapping[str, Any], origin: str) -> None:
        for key in [key for key in values if any(_replaces(new, key) for new in layer)]:
            del values[key], origins[key]
        values.update(layer)
        origins.update(dict.fromkeys(layer, origin))

    for path in files:
        put(read_file(path), f"file {path}")
    put(read_overrides(overrides), "command line")
    preset_values: dict[str, tuple[str, Any]] = {}
    for name, preset in presets:
        for key, value in flatten(preset).items():
            if any(_replaces(new, key) for new in values):
                continue
            other = preset_values.setdefault(key, (name, value))
            if other[1] != value:
                raise ConfigError(
                    f"the presets of '{other[0]}' and '{name}' differ on {key}: "
                    f"{other[1]!r} and {value!r}; choose by {key}=…"
                )
    for key, (name, value) in preset_values.items():
        values[key], origins[key] = value, f"preset {name}"
    return Layers(values, origins)


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


@dataclass(frozen=True, slots=True)
class ResolvedConfig:
    """The checked config of one run."""

    config: Config
    sections: Mapping[type[BaseModel], BaseModel]
    """Every section that plugins may ask for, by class."""
    tree: Mapping[str, Any]
    """Everything, defaults included, as plain values."""
    origins: Mapping[str, str]
    """Dotted key of each leaf of ``tree`` → where its value came from."""
    owners: Mapping[str, str] = field(default_factory=dict)
    """Class name of a section of an unselected plugin → that plugin."""

    def __getitem__(self, section: type[SectionT]) -> SectionT:
        """The section of that class; this makes it a `skyrl_kernel.protocols.Settings`."""
        try:
            found = self.sections[section]
        except KeyError:
            raise KeyError(
                f"no config section {section.__name__} in this run: the plugin that owns it "
                f"({section.__module__.split('.')[0]}) is not selected"
            ) from None
        assert isinstance(found, section)
        return found


def resolve_config(
    layers: Layers,
    plugin_sections: Mapping[str, type[BaseModel]],
    unselected: Mapping[str, str],
) -> ResolvedConfig:
    """Check the merged values against the kernel's tree and the selected plugins' sections.

    Args:
        layers: What was set.
        plugin_sections: Dotted path → model, of the selected plugins.
        unselected: Dotted path → plugin name, of installed plugins that are not selected.

    Raises:
        ConfigError: An unknown key (with the nearest known one), a key of an
            unselected plugin (with its name), or a value of the wrong type or range.
    """
    known = _known_keys(Config)
    for path, model in plugin_sections.items():
        known.update({f"{path}.{key}": leaf for key, leaf in _known_keys(model).items()})
    problems: list[str] = []
    for key in layers.values:
        problem = _key_problem(key, known, unselected, layers.origins[key])
        if problem:
            problems.append(problem)
    if problems:
        raise ConfigError("\n".join(problems))

    kernel_values = dict(layers.values)
    instances: dict[type[BaseModel], BaseModel] = {}
    tree: dict[str, Any] = {}
    origins: dict[str, str] = {}
    for path, model in plugin_sections.items():
        own = {k: kernel_values.pop(k) for k in list(kernel_values) if k.startswith(f"{path}.")}
        stripped = {k[len(path) + 1 :]: v for k, v in own.items()}
        instances[model] = _validate(model, stripped, path, layers.origins)
    config = _validate(Config, kernel_values, "", layers.origins)
    assert isinstance(config, Config)
    for path, section in KERNEL_SECTIONS:
        node: Any = config
        for part in path.split(".") if path else ():
            node = getattr(node, part)
        instances[section] = node
    tree.update(flatten(config.model_dump(mode="json")))
    for path, model in plugin_sections.items():
        tree.update(flatten(instances[model].model_dump(mode="json"), f"{path}."))
    for key in tree:
        origins[key] = _origin(key, layers.origins)
    return ResolvedConfig(config=config, sections=instances, tree=unflatten(tree), origins=origins)


def _origin(key: str, origins: Mapping[str, str]) -> str:
    """Origin of a leaf; a value may have been set for it, above it or below it."""
    for candidate, origin in origins.items():
        if key == candidate or key.startswith(f"{candidate}.") or candidate.startswith(f"{key}."):
            return origin
    return "default"


def _known_keys(model: type[BaseModel], prefix: str = "") -> dict[str, bool]:
    """Dotted key of each leaf → whether anything may follow it (free-form mappings)."""
    known: dict[str, bool] = {}
    for name, info in model.model_fields.items():
        annotation = info.annotation
        if isinstance(annotation, type) and issubclass(annotation, BaseModel):
            known.update(_known_keys(annotation, f"{prefix}{name}."))
        else:
            known[f"{prefix}{name}"] = str(annotation).startswith("dict")
    return known


def _key_problem(
    key: str, known: Mapping[str, bool], unselected: Mapping[str, str], origin: str
) -> str | None:
    if key in known:
        return None
    if any(free and key.startswith(f"{leaf}.") for leaf, free in known.items()):
        return None
    for path, plugin in unselected.items():
        if key == path or key.startswith(f"{path}."):
            return (
                f"config key '{key}' ({origin}) belongs to the plugin '{plugin}', which is not "
                f"selected; add --plugin {plugin}"
            )
    below = sorted(leaf for leaf in known if leaf.startswith(f"{key}."))
    if below:
        more = f", and {len(below) - _SHOWN_KEYS} more" if len(below) > _SHOWN_KEYS else ""
        return (
            f"config key '{key}' ({origin}) is a section and takes no value; it has the keys "
            f"{', '.join(below[:_SHOWN_KEYS])}{more}"
        )
    nearest = _nearest(key, known)
    hint = (
        f"; did you mean '{nearest}'?" if nearest else "; docs/reference/config.md lists all keys"
    )
    return f"no config key '{key}' ({origin}){hint}"


def _nearest(key: str, known: Iterable[str]) -> str | None:
    """The known key most like ``key``: of those that end alike if there are any, else of all."""
    names = list(known)
    leaf = key.rpartition(".")[2]
    by_leaf = [name for name in names if name.rpartition(".")[2] == leaf]
    close = difflib.get_close_matches(key, by_leaf, n=1, cutoff=0.0)
    close = close or difflib.get_close_matches(key, names, n=1, cutoff=0.5)
    return close[0] if close else None


def _validate(
    model: type[BaseModel], values: Mapping[str, Any], path: str, origins: Mapping[str, str]
) -> BaseModel:
    try:
        return model.model_validate(unflatten(values))
    except ValidationError as error:
        problems: dict[str, list[str]] = {}
        for one in error.errors():
            message = one["msg"].removeprefix("Value error, ")
            if one["type"] == "value_error":
                problems[message] = []
                continue
            parts = [path] if path else []
            parts += [str(part) for part in one["loc"] if isinstance(part, str) and "[" not in part]
            key = ".".join(parts)
            while key and key not in origins and key.rpartition(".")[0] in origins:
                key = key.rpartition(".")[0]  # union branches and list places end the location
            subject = f"{key}={one['input']!r} ({_origin(key, origins)}): "
            wanted = problems.setdefault(subject, [])
            wanted.append(f"{message[0].lower()}{message[1:]}")
        lines = [head + " or ".join(dict.fromkeys(tail)) for head, tail in problems.items()]
        raise ConfigError("\n".join(lines)) from error
