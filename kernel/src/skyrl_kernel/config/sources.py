"""Where config values come from: files and ``key=value`` words, as flat dotted keys."""

import tomllib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import yaml

from skyrl_kernel.config.words import read_word, read_yaml
from skyrl_kernel.errors import ConfigError


def flatten(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested mapping → dotted keys. Keys may be dotted already; an empty mapping stays a value.

    Example:
        >>> flatten({"trainer": {"epochs": 2, "ref.model": {"path": "x"}}})
        {'trainer.epochs': 2, 'trainer.ref.model.path': 'x'}
    """
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        path = f"{prefix}{key}"
        if isinstance(value, Mapping) and value:
            flat.update(flatten(value, f"{path}."))
        else:
            flat[path] = value
    return flat


def unflatten(flat: Mapping[str, Any]) -> dict[str, Any]:
    """Dotted keys → nested mapping.

    Raises:
        ConfigError: One key is both a value and a section.

    Example:
        >>> unflatten({"trainer.epochs": 2})
        {'trainer': {'epochs': 2}}
    """
    tree: dict[str, Any] = {}
    for path, value in flat.items():
        *sections, leaf = path.split(".")
        node = tree
        for name in sections:
            below = node.setdefault(name, {})
            if not isinstance(below, dict):
                raise ConfigError(
                    f"config key '{path}' lies below '{name}', which is set to a value"
                )
            node = below
        if isinstance(node.get(leaf), dict) and node[leaf]:
            raise ConfigError(
                f"config key '{path}' is set to a value, but it is a section with keys: "
                f"{', '.join(sorted(node[leaf]))}"
            )
        node[leaf] = value
    return tree


def read_file(path: Path) -> dict[str, Any]:
    """Flat keys of a YAML or TOML file.

    Raises:
        ConfigError: The file is missing, of another type, unreadable or no mapping.
    """
    path = path.expanduser()
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise ConfigError(f"config file '{path}' cannot be read: {reason}") from error
    try:
        if path.suffix in {".yaml", ".yml"}:
            tree = read_yaml(text)
            tree = {} if tree is None else tree
        elif path.suffix == ".toml":
            tree = tomllib.loads(text)
        else:
            raise ConfigError(
                f"config file '{path}' has the suffix '{path.suffix}'; use .yaml, .yml or .toml"
            )
    except (yaml.YAMLError, tomllib.TOMLDecodeError) as error:
        raise ConfigError(
            f"config file '{path}' is not valid: {' '.join(str(error).split())}"
        ) from error
    if not isinstance(tree, Mapping):
        raise ConfigError(
            f"config file '{path}' holds a {type(tree).__name__}; it must be a mapping of keys"
        )
    return flatten(tree)


def read_overrides(words: Iterable[str]) -> dict[str, Any]:
    """Flat keys of ``key=value`` words, values as in `words`; the last of equal keys wins.

    Raises:
        ConfigError: A word is not of that form.

    Example:
        >>> read_overrides(["trainer.epochs=3", "data.val_data=['a', 'b']", "trainer.run_name=2026-01-01"])
        {'trainer.epochs': 3, 'data.val_data': ['a', 'b'], 'trainer.run_name': '2026-01-01'}
    """
    flat: dict[str, Any] = {}
    for word in words:
        key, equals, text = word.partition("=")
        if key.startswith("+"):
            raise ConfigError(
                f"'{word}': write {word.lstrip('+')} without the '+'; plugins declare their own keys"
            )
        if not equals or not key or any(not part for part in key.split(".")):
            raise ConfigError(
                f"'{word}' is not of the form key=value, such as trainer.epochs=3; "
                "plugins are named with --plugin NAME"
            )
        value = read_word(text)
        if isinstance(value, Mapping) and value:
            flat.update(flatten(value, f"{key}."))
        else:
            flat[key] = value
    return flat
