"""What a package says about its plugins without being imported: ``plugin.toml``.

One table per entry-point name. Everything in it is optional, and nothing else
is allowed in it, so that a misspelt key is a message and not a silence::

    [grpo]
    summary = "Group-relative advantages (GRPO)."
    slots = ["trainer.algorithm.advantage_estimator"]   # config keys that may hold the name
    config = []                                         # sections that the plugin owns
    needs = []                                          # capabilities asked of others
    offers = []                                         # capabilities given to others
    reads = ["trainer.algorithm.grpo_norm_by_std"]      # kernel keys that few other plugins read
    runtime_env = {}                                    # Ray's, for the processes of this plugin
    [grpo.preset]                                       # applied by --plugin grpo
    "trainer.algorithm.advantage_estimator" = "grpo"

Checked by hand rather than by pydantic, whose import alone would take a third
of the time in which ``skyrl plugins list`` answers.
"""

import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from skyrl_kernel.plugins.wording import did_you_mean

FILENAME = "plugin.toml"


class ManifestError(ValueError):
    """A ``plugin.toml`` that cannot be used; the message names the file and the reason."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Manifest:
    """One table of a ``plugin.toml``.

    Example:
        >>> parse_manifest({"summary": "Doubles.", "preset": {"trainer.epochs": 2}}).preset
        {'trainer.epochs': 2}
    """

    summary: str = ""
    """One sentence for listings."""
    slots: tuple[str, ...] = ()
    """Config keys that may hold the plugin's name."""
    config: tuple[str, ...] = ()
    """Dotted paths of the config sections that the plugin owns."""
    needs: tuple[str, ...] = ()
    """Capabilities that some selected plugin must offer."""
    offers: tuple[str, ...] = ()
    """Capabilities that the plugin brings."""
    reads: tuple[str, ...] | None = None
    """Keys of the kernel's own sections that it reads and most plugins do not, so that a run can
    say of a setting that nothing reads it; one that ends in a dot stands for all below it. None
    leaves open what is read."""
    preset: Mapping[str, Any] = field(default_factory=dict)
    """Dotted config key → value, applied by ``--plugin``."""

    runtime_env: Mapping[str, Any] = field(default_factory=dict)
    """Ray's runtime environment for processes of its own, where its packages clash with others."""

    def is_reader(self, key: str) -> bool:
        """True if ``reads`` has the key."""
        return any(
            key == one or (one.endswith(".") and key.startswith(one)) for one in self.reads or ()
        )


_LISTS = ("slots", "config", "needs", "offers")
_KEYS = ("summary", *_LISTS, "reads", "preset", "runtime_env")


def read_tables(path: Path) -> dict[str, Any]:
    """The tables of a ``plugin.toml``, by entry-point name; their contents are not yet checked.

    Raises:
        ManifestError: The file cannot be read, or is no TOML.
    """
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise ManifestError(f"{path}: {error}") from error


def parse_manifest(table: object) -> Manifest:
    """Check one table.

    Raises:
        ManifestError: A key is unknown, or holds the wrong type.
    """
    if not isinstance(table, dict):
        raise ManifestError(f"expected a table, found {table!r}")
    for key in table:
        if key not in _KEYS:
            raise ManifestError(
                f"unknown key '{key}'.{did_you_mean(key, _KEYS)} Known: {', '.join(_KEYS)}"
            )
    summary = table.get("summary", "")
    if not isinstance(summary, str):
        raise ManifestError(f"summary must be a string, found {summary!r}")
    preset = table.get("preset", {})
    if not isinstance(preset, dict):
        raise ManifestError(f"preset must be a table, found {preset!r}")
    runtime_env = table.get("runtime_env", {})
    if not isinstance(runtime_env, dict):
        raise ManifestError(f"runtime_env must be a table, found {runtime_env!r}")
    return Manifest(
        summary=summary,
        reads=_strings("reads", table["reads"]) if "reads" in table else None,
        preset=_flat(preset),
        runtime_env=runtime_env,
        **{key: _strings(key, table.get(key, [])) for key in _LISTS},
    )


def _strings(key: str, value: object) -> tuple[str, ...]:
    if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
        raise ManifestError(f"{key} must be a list of strings, found {value!r}")
    return tuple(value)


def _flat(preset: Mapping[str, Any]) -> dict[str, Any]:
    """Dotted keys, whether the author quoted them or let TOML nest them."""
    flat: dict[str, Any] = {}
    for key, value in _leaves(preset, ""):
        if key in flat:
            raise ManifestError(f"preset sets '{key}' twice")
        flat[key] = value
    return flat


def _leaves(tree: Mapping[str, Any], prefix: str) -> Iterator[tuple[str, Any]]:
    for key, value in tree.items():
        if isinstance(value, dict) and value:
            yield from _leaves(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value
