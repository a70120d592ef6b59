"""Layers of values become one checked config, and every value knows where it came from.

Precedence: kernel defaults < presets < files < ``key=value``.
"""

import difflib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from skyrl_kernel.config.sources import flatten, read_file, read_overrides, unflatten
from skyrl_kernel.config.tree import KERNEL_SECTIONS, Config
from skyrl_kernel.errors import ConfigError

SectionT = TypeVar("SectionT", bound=BaseModel)


@dataclass(frozen=True, slots=True)
class Layers:
    """What was set, before anything is checked."""

    values: Mapping[str, Any]
    """Dotted key → value."""
    origins: Mapping[str, str]
    """Dotted key → ``preset NAME``, ``file PATH`` or ``command line``."""

    def get(self, key: str) -> Any:
        """The value of a key of the kernel's tree, its default included."""
        if key in self.values:
            return self.values[key]
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
    for path in files:
        for key, value in read_file(path).items():
            values[key], origins[key] = value, f"file {path}"
    for key, value in read_overrides(overrides).items():
        values[key], origins[key] = value, "command line"
    preset_values: dict[str, tuple[str, Any]] = {}
    for name, preset in presets:
        for key, value in flatten(preset).items():
            if key in values:
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
        return f"config key '{key}' ({origin}) is a section; its keys are: {', '.join(below)}"
    nearest = _nearest(key, known)
    hint = (
        f"; did you mean '{nearest}'?" if nearest else "; docs/reference/config.md lists all keys"
    )
    return f"no config key '{key}' ({origin}){hint}"


def _nearest(key: str, known: Iterable[str]) -> str | None:
    """The known key most like ``key``: by its whole path, or by its last part anywhere."""
    names = list(known)
    close = difflib.get_close_matches(key, names, n=1, cutoff=0.75)
    if close:
        return close[0]
    leaf = key.rpartition(".")[2]
    by_leaf = [name for name in names if name.rpartition(".")[2] == leaf]
    if by_leaf:
        return difflib.get_close_matches(key, by_leaf, n=1, cutoff=0.0)[0]
    close = difflib.get_close_matches(key, names, n=1, cutoff=0.5)
    return close[0] if close else None


def _validate(
    model: type[BaseModel], values: Mapping[str, Any], path: str, origins: Mapping[str, str]
) -> BaseModel:
    try:
        return model.model_validate(unflatten(values))
    except ValidationError as error:
        lines = []
        for one in error.errors():
            parts = [path] if path else []
            parts += [str(part) for part in one["loc"] if isinstance(part, str) and "[" not in part]
            key = ".".join(parts)
            while key and key not in origins and key.rpartition(".")[0] in origins:
                key = key.rpartition(".")[0]  # union branches and list places end the location
            message = one["msg"].removeprefix("Value error, ")
            if one["type"] == "value_error":
                line = message
            else:
                line = f"{key}={one['input']!r} ({_origin(key, origins)}): {message[0].lower()}{message[1:]}"
            if line not in lines:
                lines.append(line)
        raise ConfigError("\n".join(lines)) from error
