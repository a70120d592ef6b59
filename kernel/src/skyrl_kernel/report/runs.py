"""What a run folder says about the run as a whole: config, plugins, numbers, failures.

Numbers keep six significant digits. A run of more than `MAX_LINES` steps is
thinned, evaluations aside; a run with more than `MAX_FAILURES` lost
trajectories shows the latest, and counts them all.
"""

import collections
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from skyrl_kernel.config.sources import flatten
from skyrl_kernel.errors import UsageError
from skyrl_kernel.run.folder import RunFolder

MAX_LINES = 1000
"""Steps whose numbers are on the page: as many as a wide screen has places for."""
MAX_FAILURES = 500
"""Lost trajectories that are told one by one."""
MAX_MESSAGE = 600
"""Characters of a failure's message."""


def open_run(path: Path) -> RunFolder:
    """The run folder at ``path``.

    Raises:
        UsageError: It is none, or nothing is in it yet; says what is there.
    """
    folder = RunFolder(path)
    if not folder.config.is_file():
        found = sorted(str(config.parent) for config in path.glob("*/config.yaml"))
        raise UsageError(
            f"{path} is no run folder: it has no config.yaml; run folders in it: "
            f"{', '.join(found) or 'none'}"
        )
    if not folder.has_results:
        raise UsageError(
            f"{path} has nothing to report yet: no step was finished. When one is: skyrl report {path}"
        )
    return folder


def describe_run(folder: RunFolder) -> dict[str, Any]:
    """Everything about the run but its trajectories, JSON-able.

    Returns:
        ``config`` and ``origins`` by dotted key, ``plugins``, ``metrics``,
        ``failures``, and ``notes``: what is not on the page, in full sentences.
    """
    metrics, notes = _metrics(folder.read_metrics())
    failures = folder.read_failures()
    if len(failures) > MAX_FAILURES:
        notes.append(
            f"Of {len(failures):,} lost trajectories the last {MAX_FAILURES} are listed; "
            "failures.jsonl has them all."
        )
    config = flatten(folder.read_config())
    return {
        "config": {key: _shown(value) for key, value in sorted(config.items())},
        "origins": dict(_origins(folder.config.read_text(encoding="utf-8"))),
        "plugins": _plugins(folder),
        "metrics": metrics,
        "failures": [_failure(record) for record in failures[-MAX_FAILURES:]],
        "failure_counts": _counts(failures),
        "notes": notes,
    }


def significant(value: Any, digits: int = 6) -> Any:
    """A number rounded to significant digits; what is not finite as a string, as in metrics.jsonl.

    Example:
        >>> significant(0.12345678), significant(3.0), significant(float("nan")), significant(None)
        (0.123457, 3, 'NaN', None)
    """
    if value is None or isinstance(value, str | bool):
        return value
    if not math.isfinite(value):
        return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"
    rounded = float(f"{value:.{digits}g}")
    return int(rounded) if rounded.is_integer() and abs(rounded) < 2**53 else rounded


def _metrics(lines: Sequence[Mapping[str, Any]]) -> tuple[dict[str, Any], list[str]]:
    """One column per metric, null where a step has none; what was left out."""
    kept, notes = list(lines), []
    if len(lines) > MAX_LINES:
        stride = math.ceil(len(lines) / MAX_LINES)
        last = len(lines) - 1
        kept = [
            line
            for place, line in enumerate(lines)
            if place % stride == 0 or place == last or any(key.startswith("eval/") for key in line)
        ]
        notes.append(
            f"Curves show one step in {stride} of {len(lines):,}, and every evaluation; "
            "metrics.jsonl has them all."
        )
    names = sorted({name for line in kept for name in line} - {"step"})
    columns = {name: [significant(line.get(name)) for line in kept] for name in names}
    return {"steps": [int(line["step"]) for line in kept], "columns": columns}, notes


def _failure(record: Mapping[str, Any]) -> dict[str, Any]:
    message = str(record.get("message", ""))
    if len(message) > MAX_MESSAGE:
        message = message[:MAX_MESSAGE] + " …"
    return {
        **{key: record.get(key) for key in ("step", "uid", "sample", "kind", "plugin")},
        "message": message,
    }


def _counts(failures: Sequence[Mapping[str, Any]]) -> list[list[Any]]:
    """``[kind, plugin, count]``, the most frequent first."""
    counts = collections.Counter(
        (str(record.get("kind")), record.get("plugin")) for record in failures
    )
    return [[kind, plugin, count] for (kind, plugin), count in counts.most_common()]


def _plugins(folder: RunFolder) -> list[list[str]]:
    """``[kind/name, distribution, version]`` of every plugin; none if the file is missing."""
    if not folder.plugins.is_file():
        return []
    return [
        [f"{one.get('kind')}/{one.get('name')}", one.get("distribution"), one.get("version")]
        for one in folder.read_plugins()
    ]


def _origins(text: str) -> Iterator[tuple[str, str]]:
    """Dotted key → where its value came from: the comments of ``config.yaml``."""
    path: list[str] = []
    for line in text.splitlines():
        entry, mark, origin = line.rpartition("  # ")
        entry = entry if mark else line
        key, colon, _ = entry.partition(":")
        depth = (len(key) - len(key.lstrip())) // 2
        if not colon or depth > len(path):
            continue
        path = [*path[:depth], key.strip().strip("'\"")]
        if mark:
            yield ".".join(path), origin


def _shown(value: Any) -> Any:
    """A config value in the types that JSON knows."""
    if isinstance(value, list | tuple):
        return [_shown(item) for item in value]
    return value if value is None or isinstance(value, bool | int | float | str) else str(value)
