"""What exactly a run was made of, so that workers and resumes can be held to it."""

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from skyrl_kernel.errors import PluginLoadError
from skyrl_kernel.plugins.catalog import PluginEntry
from skyrl_kernel.plugins.discovery import KERNEL, installed_version
from skyrl_kernel.plugins.manifest import FILENAME
from skyrl_kernel.plugins.packages import find_package
from skyrl_kernel.slots import GROUPS

Lock = list[dict[str, str]]
"""JSON-able; one object per plugin, sorted by kind and name."""


def plugin_lock(entries: Iterable[PluginEntry]) -> Lock:
    """Record the plugins of a run.

    Returns:
        Objects with ``name``, ``kind``, ``value``, ``distribution``, ``version`` and
        ``digest``: the sha256 of the package's Python files and ``plugin.toml``, which
        depends on their paths inside the package and contents alone, so that an editable
        install and a wheel of the same files agree.
    """
    digests: dict[str, str] = {}
    lock: Lock = []
    for entry in sorted(entries, key=lambda entry: (entry.kind, entry.name)):
        if entry.package not in digests:
            digests[entry.package] = _digest(find_package(entry.package))
        lock.append(
            {
                "name": entry.name,
                "kind": entry.kind,
                "value": entry.value,
                "distribution": entry.distribution,
                "version": entry.version,
                "digest": digests[entry.package],
            }
        )
    return lock


def kernel_record() -> dict[str, str]:
    """The kernel of this process, recorded as a plugin is: for workers, which are held to it too."""
    package = __name__.partition(".")[0]
    return {
        "name": "kernel",
        "kind": "kernel",
        "value": package,
        "distribution": KERNEL,
        "version": installed_version(KERNEL) or "unknown",
        "digest": _digest(find_package(package)),
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
        change = _change(before.get(key), after.get(key))
        if change is not None:
            changes.setdefault(change, []).append(key[1])
    return [f"{', '.join(names)}: {change}" for change, names in changes.items()]


def _change(old: Mapping[str, Any] | None, new: Mapping[str, Any] | None) -> str | None:
    if old is None or new is None:
        record, verb = (new, "added") if old is None else (old, "removed")
        assert record is not None, "a key comes from one of the two locks"
        return f"{verb} ({record['distribution']} {record['version']})"
    if old["distribution"] != new["distribution"]:
        return f"{old['distribution']} {old['version']} → {new['distribution']} {new['version']}"
    if old["version"] != new["version"]:
        return f"{new['distribution']} {old['version']} → {new['version']}"
    if old["value"] != new["value"]:
        return f"{new['distribution']} {new['version']}: {old['value']} → {new['value']}"
    if old["digest"] != new["digest"]:
        return f"{new['distribution']} {new['version']}: file contents changed"
    return None


def _digest(origin: Sequence[Path]) -> str:
    """Hash of relative paths and contents, in sorted order."""
    hashed = hashlib.sha256()
    for relative, path in sorted(_files(origin)):
        content = path.read_bytes()
        hashed.update(f"{relative}\0{len(content)}\0".encode())
        hashed.update(content)
    return hashed.hexdigest()


def _files(origin: Sequence[Path]) -> Iterable[tuple[str, Path]]:
    for place in origin:
        if place.is_file():
            yield place.name, place
            continue
        for path in place.rglob("*"):
            if path.suffix == ".py" or path.name == FILENAME:
                yield path.relative_to(place).as_posix(), path
