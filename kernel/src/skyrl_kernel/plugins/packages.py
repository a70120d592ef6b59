"""Where a plugin's package lies, and what its ``plugin.toml`` says; nothing is imported."""

import importlib.util
import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from skyrl_kernel.plugins.manifest import (
    FILENAME,
    Manifest,
    ManifestError,
    parse_manifest,
    read_tables,
)
from skyrl_kernel.plugins.vocabulary import doubts
from skyrl_kernel.plugins.wording import listed


def describe(name: str, value: str, fallback: Manifest) -> tuple[Manifest, list[str], list[str]]:
    """What an entry point's package says about it.

    Args:
        name: Of the entry point.
        value: Its module.
        fallback: Used where the package says nothing.

    Returns:
        Manifest, problems, warnings.
    """
    if re.fullmatch(r"[\w.+-]+", name) is None:
        return fallback, ["its name holds more than letters, digits, '_', '-', '+' and '.'"], []
    if re.fullmatch(r"\w+(\.\w+)*", value) is None:
        return fallback, [f"its entry point '{value}' names no module; write {name} = PACKAGE"], []
    package = value.partition(".")[0]
    places = find_package(package)
    if not places:
        return fallback, [f"its package '{package}' is nowhere on sys.path: reinstall it"], []
    path = _manifest_path(places, value)
    if path is None:
        return fallback, [], []
    try:
        tables = read_tables(path)
    except ManifestError as error:
        return fallback, [str(error)], []
    if name not in tables:
        found = listed(f"[{table}]" for table in tables)
        return fallback, [], [f"{path} has no table [{name}]; it has: {found}"]
    try:
        manifest = parse_manifest(tables[name])
    except ManifestError as error:
        return fallback, [f"{path}, table [{name}]: {error}"], []
    whole = replace(manifest, summary=manifest.summary or fallback.summary)
    return whole, [], list(doubts(manifest))


def find_package(name: str) -> list[Path]:
    """Folders of a top-level package, or the file of a top-level module; empty if there is none.

    Of a top-level name `importlib.util.find_spec` imports nothing.
    """
    try:
        spec = importlib.util.find_spec(name)
    except (ImportError, ValueError):  # ValueError: somebody left a module without __spec__
        return []
    if spec is None:
        return []
    if spec.submodule_search_locations is not None:
        return [Path(folder) for folder in spec.submodule_search_locations]
    return [Path(spec.origin)] if spec.origin else []


def _manifest_path(places: Sequence[Path], value: str) -> Path | None:
    """The ``plugin.toml`` beside the module, or the nearest one in a package around it."""
    inner = value.split(".")[1:]
    for depth in range(len(inner), -1, -1):
        for place in places:
            path = place.joinpath(*inner[:depth], FILENAME)
            if path.is_file():
                return path
    return None
