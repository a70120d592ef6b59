"""Numbers that engines count of their own work, and how those of several become one."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True, slots=True)
class Count:
    """A number of one engine.

    Example:
        >>> running, hit_rate = Count(value=3.0), Count(value=0.5, weight=200.0)
    """

    value: float
    weight: float | None = None
    """None: several engines' numbers are added up; or else averaged by this, which is above 0."""


def joined(parts: Sequence[Mapping[str, Count]]) -> dict[str, Count]:
    """The counts of several engines as of one; each over the engines that have it.

    Example:
        >>> one = {"running": Count(value=3.0), "hit_rate": Count(value=0.5, weight=200.0)}
        >>> two = {"running": Count(value=1.0), "hit_rate": Count(value=0.9, weight=600.0)}
        >>> found = joined([one, two])
        >>> found["running"].value, found["hit_rate"].value
        (4.0, 0.8)
    """
    columns: dict[str, list[Count]] = {}
    for part in parts:
        for name, count in part.items():
            columns.setdefault(name, []).append(count)
    return {name: _joined(column) for name, column in columns.items()}


def _joined(column: Sequence[Count]) -> Count:
    weights = [count.weight for count in column if count.weight is not None]
    if not weights:
        return Count(value=sum(count.value for count in column))
    total = sum(weights)
    pairs = zip(column, weights, strict=True)
    return Count(value=sum(count.value * weight for count, weight in pairs) / total, weight=total)
