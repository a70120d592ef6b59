"""What a plugin's distribution is built on: others of this project, and others with plugins.

Read from the metadata of what is installed; nothing is imported.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import Distribution
from pathlib import Path

from packaging.requirements import InvalidRequirement, Requirement
from packaging.utils import canonicalize_name

from skyrl_kernel.plugins.discovery import KERNEL
from skyrl_kernel.plugins.packages import find_package
from skyrl_kernel.slots import GROUPS

_OURS = "skyrl-"


@dataclass(frozen=True, kw_only=True, slots=True)
class Required:
    """A distribution that another one requires."""

    name: str
    """On the package index, normalized."""
    version: str
    places: tuple[Path, ...]
    """Of its packages: see `skyrl_kernel.plugins.packages.find_package`."""


def built_on(distribution: str) -> list[Required]:
    """What a distribution requires, and what that does in turn, sorted by name.

    The kernel is left out, and so is what neither begins with ``skyrl-`` nor has plugins: its versions
    are the matter of whoever installs. So is what is not installed.
    """
    found: dict[str, Required | None] = {}
    waiting = [*_requires(_installed(distribution))]
    while waiting:
        name = waiting.pop()
        if name in (*found, KERNEL, canonicalize_name(distribution)):
            continue
        installed = _installed(name)
        if installed is None or not (name.startswith(_OURS) or _has_plugins(installed)):
            found[name] = None
            continue
        found[name] = Required(
            name=name, version=installed.version, places=tuple(_places(name, installed))
        )
        waiting += _requires(installed)
    return [one for _, one in sorted(found.items()) if one is not None]


def _installed(name: str) -> Distribution | None:
    return next(iter(Distribution.discover(name=name)), None)


def _requires(distribution: Distribution | None) -> Iterator[str]:
    """Names that it requires without an extra."""
    for line in (distribution.requires if distribution else None) or ():
        try:
            requirement = Requirement(line)
        except InvalidRequirement:  # `discover` tells of it
            continue
        if requirement.marker is None or requirement.marker.evaluate({"extra": ""}):
            yield canonicalize_name(requirement.name)


def _has_plugins(distribution: Distribution) -> bool:
    points = distribution.read_text("entry_points.txt") or ""
    return any(group in points for group in GROUPS.values())


def _places(name: str, distribution: Distribution) -> Iterator[Path]:
    """Of the package that the name stands for, and of those that its plugins are in."""
    packages = {name.replace("-", "_")}
    if _has_plugins(distribution):
        points = [one for one in distribution.entry_points if one.group in GROUPS.values()]
        packages |= {one.value.partition(".")[0] for one in points}
    for package in sorted(packages):
        yield from find_package(package)
