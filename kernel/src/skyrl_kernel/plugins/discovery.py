"""Which plugins are installed, found without importing any of them.

Reads the metadata of installed distributions and the ``plugin.toml`` of their
packages. Every fault is kept beside the entry that it concerns, so one broken
package never hides the others.

Two habits of Python's own `importlib.metadata.entry_points` are avoided:

1. It goes through `importlib.metadata.distributions`, which some libraries
   replace while they import others; then it finds nothing and says nothing.
   Here the finders of ``sys.meta_path`` are asked, once per process.
2. Of two copies of a distribution on ``sys.path`` it reads the first, so that a
   stale ``.egg-info`` hides a plugin. Here all copies are compared.
"""

import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from email.message import Message
from importlib.metadata import Distribution, EntryPoint

from packaging.requirements import InvalidRequirement, Requirement
from packaging.specifiers import SpecifierSet

from skyrl_kernel.errors import PluginLoadError
from skyrl_kernel.plugins.catalog import Catalog, PluginEntry
from skyrl_kernel.plugins.manifest import Manifest
from skyrl_kernel.plugins.packages import describe
from skyrl_kernel.slots import GROUPS

KERNEL = "skyrl-kernel"
_UNKNOWN = "unknown version"

_NOT_INSTALLED = (
    f"{KERNEL} is not properly installed here (its metadata is missing or damaged), so that no "
    f"plugin can be found or checked: pip install --force-reinstall --no-deps {KERNEL}"
)

_cached: Catalog | None = None


def discover(*, refresh: bool = False) -> Catalog:
    """The installed plugins; scanned at the first call in a process, remembered afterwards.

    Args:
        refresh: Scan again, because something was installed meanwhile.

    Raises:
        PluginLoadError: Not even the kernel's own plugins were found.
    """
    global _cached
    if _cached is None or refresh:
        _cached = _scan()
    return _cached


def _scan() -> Catalog:
    kernel = next(map(_read, Distribution.discover(name=KERNEL)), None)
    if kernel is None or kernel.version == _UNKNOWN:
        raise PluginLoadError(_NOT_INSTALLED)
    entries: list[PluginEntry] = []
    problems: list[str] = []
    for copies in _installed():
        try:
            entries += _entries_of(copies, kernel.version)
        except _UnreadableEntryPoints as error:
            problems.append(str(error))
    if not any(_normalized(entry.distribution) == KERNEL for entry in entries):
        raise PluginLoadError(_NOT_INSTALLED)
    return Catalog(
        entries=tuple(
            sorted(
                _with_rivals(entries),
                key=lambda entry: (entry.group, entry.name, entry.distribution),
            )
        ),
        kernel_version=kernel.version,
        problems=tuple(sorted(problems)),
    )


def _with_rivals(entries: Sequence[PluginEntry]) -> Iterator[PluginEntry]:
    """The same entries; those whose name another distribution claims too say so."""
    claims = Counter((entry.group, entry.name) for entry in entries)
    for entry in entries:
        if claims[entry.group, entry.name] == 1:
            yield entry
            continue
        rivals = " and ".join(
            sorted(
                other.label
                for other in entries
                if other is not entry and (other.group, other.name) == (entry.group, entry.name)
            )
        )
        claim = f"the name is also claimed by {rivals}; uninstall all but one"
        yield replace(entry, problems=(*entry.problems, claim))


def installed_version(distribution: str) -> str | None:
    """Version of a distribution by its name, without a scan; None if it is not installed."""
    found = next(map(_read, Distribution.discover(name=distribution)), None)
    return None if found is None else found.version


# --- distributions ------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Copy:
    """One place where a distribution is installed; its metadata, parsed once."""

    distribution: Distribution
    metadata: Message
    name: str
    version: str
    points: str
    """Text of ``entry_points.txt``."""

    @property
    def has_plugins(self) -> bool:
        return any(group in self.points for group in GROUPS.values())

    @property
    def where(self) -> str:
        return f"{self.version} in {self.distribution.locate_file('')}"


def _installed() -> Iterator[list[_Copy]]:
    """Per distribution with plugins: its copies in the order of ``sys.path``."""
    seen: set[str] = set()
    for found in Distribution.discover():
        points = found.read_text("entry_points.txt") or ""
        if not any(group in points for group in GROUPS.values()):
            continue  # most of what is installed; its metadata is not even parsed
        name = _normalized(_read(found).name)
        if name not in seen:
            seen.add(name)
            yield [_read(copy) for copy in Distribution.discover(name=name)] or [_read(found)]


def _read(distribution: Distribution) -> _Copy:
    metadata = _metadata(distribution)
    path = getattr(distribution, "_path", None)
    folder = path.name if path is not None else "unknown"  # such as skyrl_foo-0.1.0.dist-info
    return _Copy(
        distribution=distribution,
        metadata=metadata,
        name=metadata.get("Name", folder.split("-")[0]),
        version=metadata.get("Version", _UNKNOWN),
        points=distribution.read_text("entry_points.txt") or "",
    )


def _metadata(distribution: Distribution) -> Message:
    """Its headers; none where the file is missing, which Python versions report differently."""
    try:
        found: Message | None = distribution.metadata  # type: ignore[assignment]
    except FileNotFoundError:
        found = None
    return Message() if found is None else found


def _normalized(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


# --- entries ------------------------------------------------------------------------


class _UnreadableEntryPoints(ValueError):
    """``entry_points.txt`` does not parse, so nobody knows which names it would give."""


def _entries_of(copies: Sequence[_Copy], kernel_version: str) -> Iterator[PluginEntry]:
    used = next(copy for copy in copies if copy.has_plugins)
    problems, warnings = _compared(copies, used)
    problems += [
        f"its metadata lacks a {field.lower()}: pip install --force-reinstall {used.name}"
        for field in ("Name", "Version")
        if field not in used.metadata
    ]
    required = ""
    if _normalized(used.name) != KERNEL:
        required, faults, remarks = _requires_kernel(used, kernel_version)
        problems += faults
        warnings += remarks
    fallback = Manifest(summary=used.metadata.get("Summary", ""))
    for point in _points(used):
        manifest, faults, remarks = describe(point.name, point.value, fallback)
        yield PluginEntry(
            name=point.name,
            group=point.group,
            value=point.value,
            distribution=used.name,
            version=used.version,
            requires_kernel=required,
            extras=tuple(used.metadata.get_all("Provides-Extra") or ()),
            manifest=manifest,
            problems=(*problems, *faults),
            warnings=(*warnings, *remarks),
        )


def _points(copy: _Copy) -> list[EntryPoint]:
    try:
        points = list(copy.distribution.entry_points)
    except Exception as error:  # whatever a damaged file provokes in importlib's parser
        raise _UnreadableEntryPoints(
            f"{copy.name} {copy.where}: its entry_points.txt does not parse ({error}), so its "
            f"plugins are not listed: pip install --force-reinstall {copy.name}"
        ) from error
    return [point for point in points if point.group in GROUPS.values()]


def _compared(copies: Sequence[_Copy], used: _Copy) -> tuple[list[str], list[str]]:
    """(problems, warnings) that follow from several copies on ``sys.path``."""
    place = next(index for index, copy in enumerate(copies) if copy is used)
    problems = [
        f"{copy.where} comes first on sys.path, has no such plugin and hides {used.where}: "
        "uninstall or delete the stale one"
        for copy in copies[:place]
    ]
    warnings = [
        f"found twice: {used.where} is used and hides {copy.where}; uninstall the one that "
        "is not meant"
        for copy in copies[place + 1 :]
        if (copy.version, copy.points) != (used.version, used.points)
    ]
    return problems, warnings


def _requires_kernel(copy: _Copy, kernel_version: str) -> tuple[str, list[str], list[str]]:
    """(range of kernel versions, problems, warnings) from the unconditional requirements."""
    ranges: set[str] = set()
    found = False
    lines = copy.metadata.get_all("Requires-Dist")
    if lines is None and copy.metadata:  # an .egg-info keeps them in another file
        lines = copy.distribution.requires
    for line in lines or ():
        if not _normalized(line).startswith(KERNEL):
            continue
        try:
            requirement = Requirement(line)
        except InvalidRequirement as error:
            return "", [f"its requirement '{line}' does not parse: {error}"], []
        applies = requirement.marker is None or requirement.marker.evaluate({"extra": ""})
        if _normalized(requirement.name) == KERNEL and applies:
            found = True
            ranges |= {str(specifier) for specifier in requirement.specifier}
    if not found:
        return "", [], [f"it does not say which {KERNEL} it needs: add the requirement"]
    # ">=0.1,<0.2" reads better than "<0.2,>=0.1", and is the order people write.
    required = ",".join(sorted(ranges, key=lambda one: (one.startswith("<"), one)))
    if SpecifierSet(required).contains(kernel_version, prereleases=True):
        return required, [], []
    misfit = (
        f"it needs {KERNEL} {required}, but {KERNEL} {kernel_version} is installed: "
        f'pip install "{KERNEL}{required}", or another version of {copy.name}'
    )
    return required, [misfit], []
