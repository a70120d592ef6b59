"""What exactly a run was made of, so that workers and resumes can be held to it."""

import hashlib
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from skyrl_kernel.errors import PluginLoadError
from skyrl_kernel.plugins.catalog import PluginEntry
from skyrl_kernel.plugins.discovery import KERNEL, installed_version
from skyrl_kernel.plugins.manifest import FILENAME
from skyrl_kernel.plugins.packages import find_package
from skyrl_kernel.plugins.requirements import built_on
from skyrl_kernel.slots import GROUPS

Lock = list[dict[str, Any]]
"""JSON-able; one object per plugin, sorted by kind and name."""


def plugin_lock(entries: Iterable[PluginEntry]) -> Lock:
    """Record the plugins of a run.

    Returns:
        Objects with ``name``, ``kind``, ``value``, ``distribution``, ``version``;
        ``digest``: the sha256 of the package's Python files and ``plugin.toml``;
        ``data``: that of its other files; and ``requires``: ``distribution``, ``version`` and both
        digests of each that it is built on, see `skyrl_kernel.plugins.requirements`. A digest
        depends on paths inside the package and contents alone, so that an editable install and a
        wheel of the same files agree.
    """
    digests = cache(_digests)
    required = cache(built_on)
    return [
        {
            "name": entry.name,
            "kind": entry.kind,
            "value": entry.value,
            "distribution": entry.distribution,
            "version": entry.version,
            **digests(tuple(find_package(entry.package))),
            "requires": [
                {"distribution": one.name, "version": one.version, **digests(one.places)}
                for one in required(entry.distribution)
            ],
        }
        for entry in sorted(entries, key=lambda entry: (entry.kind, entry.name))
    ]


def kernel_record() -> dict[str, Any]:
    """The kernel of this process, recorded as a plugin is: for workers, which are held to it too."""
    package = __name__.partition(".")[0]
    return {
        "name": "kernel",
        "kind": "kernel",
        "value": package,
        "distribution": KERNEL,
        "version": installed_version(KERNEL) or "unknown",
        **_digests(tuple(find_package(package))),
    }


def locked_entries(lock: Sequence[Mapping[str, Any]]) -> list[PluginEntry]:
    """The plugins of a recorded lock as they are installed here, found without a scan.

    For workers: ``diff_locks(lock, plugin_lock(locked_entries(lock)))`` is empty exactly
    if this process has what the controller has.

    Raises:
        PluginLoadError: A distribution of the lock is not installed here.
    """
    entries = []
    for record in lock:
        version = installed_version(record["distribution"])
        if version is None:
            raise PluginLoadError(
                f"the run's plugin {record['kind']} '{record['name']}' "
                f"({record['distribution']} {record['version']}) is not installed in this process: "
                f'pip install "{record["distribution"]}=={record["version"]}"'
            )
        entries.append(
            PluginEntry(
                name=record["name"],
                group=GROUPS[record["kind"]],
                value=record["value"],
                distribution=record["distribution"],
                version=version,
            )
        )
    return entries


def diff_locks(old: Sequence[Mapping[str, Any]], new: Sequence[Mapping[str, Any]]) -> list[str]:
    """What changed between two locks, one line per distribution and change; empty if nothing.

    Example:
        >>> old = {"name": "grpo", "kind": "algorithm", "value": "skyrl_grpo.plugin",
        ...        "distribution": "skyrl-grpo", "version": "0.1.0", "digest": "a"}
        >>> diff_locks([old], [old | {"version": "0.2.0", "digest": "b"}])
        ['grpo: skyrl-grpo 0.1.0 → 0.2.0']
        >>> diff_locks([old], [old | {"digest": "b"}])
        ['grpo: skyrl-grpo 0.1.0: file contents changed']
    """
    before = {(record["kind"], record["name"]): record for record in old}
    after = {(record["kind"], record["name"]): record for record in new}
    changes: dict[str, list[str]] = {}
    for key in sorted(before.keys() | after.keys()):
        for change in _changes(before.get(key), after.get(key)):
            changes.setdefault(change, []).append(key[1])
    return [f"{', '.join(names)}: {change}" for change, names in changes.items()]


def _changes(old: Mapping[str, Any] | None, new: Mapping[str, Any] | None) -> Iterator[str]:
    """Of a plugin, and of what it is built on."""
    if (change := _change(old, new)) is not None:
        yield change
    if old is None or new is None or "requires" not in old.keys() & new.keys():
        return  # the lock of an older kernel does not say
    before, after = ({one["distribution"]: one for one in lock["requires"]} for lock in (old, new))
    for name in sorted(before.keys() | after.keys()):
        if name not in after:
            yield f"without {name} {before[name]['version']}"
        elif name not in before:
            yield f"with {name} {after[name]['version']}"
        elif (change := _change(before[name], after[name])) is not None:
            yield change


def _change(old: Mapping[str, Any] | None, new: Mapping[str, Any] | None) -> str | None:
    if old is None or new is None:
        record, verb = (new, "added") if old is None else (old, "removed")
        assert record is not None, "a key comes from one of the two locks"
        return f"{verb} ({record['distribution']} {record['version']})"
    if old["distribution"] != new["distribution"]:
        return f"{old['distribution']} {old['version']} → {new['distribution']} {new['version']}"
    if old["version"] != new["version"]:
        return f"{new['distribution']} {old['version']} → {new['version']}"
    if old.get("value") != new.get("value"):
        return f"{new['distribution']} {new['version']}: {old['value']} → {new['value']}"
    digests = {"digest", "data"} & old.keys() & new.keys()  # of older kernels the first alone
    if any(old[digest] != new[digest] for digest in digests):
        return f"{new['distribution']} {new['version']}: file contents changed"
    return None


def _digests(places: tuple[Path, ...]) -> dict[str, str]:
    """Hashes of relative paths and contents, in sorted order: of code, and of all else."""
    hashed = {"digest": hashlib.sha256(), "data": hashlib.sha256()}
    for relative, path in sorted(_files(places)):
        is_code = path.suffix == ".py" or path.name == FILENAME
        content = path.read_bytes()
        one = hashed["digest" if is_code else "data"]
        one.update(f"{relative}\0{len(content)}\0".encode())
        one.update(content)
    return {name: one.hexdigest() for name, one in hashed.items()}


def _files(places: Sequence[Path]) -> Iterator[tuple[str, Path]]:
    """(path inside the package, path) of its own: not what Python compiled, not what is hidden."""
    for place in places:
        if place.is_file():
            yield place.name, place
            continue
        for folder, below, names in os.walk(place):
            below[:] = [one for one in below if one != "__pycache__" and not one.startswith(".")]
            for name in names:
                if not name.startswith(".") and not name.endswith(".pyc"):
                    path = Path(folder, name)
                    yield path.relative_to(place).as_posix(), path
