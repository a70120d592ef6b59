"""Work dealt out to ranks so that all have about as many tokens."""

import heapq
from collections.abc import Sequence
from typing import Literal

from skyrl_kernel.records import TrainingSample


def share_out(tokens: Sequence[int], shares: int) -> list[list[int]]:
    """Deal out items so that the largest sum is small: the longest first, each to whoever has least.

    Args:
        tokens: Of each item.
        shares: How many parts, at least 1.

    Returns:
        [shares] numbers of items, in their order; every item once. No part is empty if
        there are as many items as parts. The largest sum is at most 4/3 of the smallest
        possible (Graham 1969, "Bounds on multiprocessing timing anomalies").

    Example:
        >>> share_out([5, 1, 1, 4, 3], 2)
        [[0, 1, 2], [3, 4]]
    """
    order = sorted(range(len(tokens)), key=lambda item: (-tokens[item], item))
    loads = [(0, 0, share) for share in range(shares)]  # tokens, items, which
    parts: list[list[int]] = [[] for _ in range(shares)]
    for item in order:
        load, count, share = heapq.heappop(loads)
        parts[share].append(item)
        heapq.heappush(loads, (load + tokens[item], count + 1, share))
    return [sorted(part) for part in parts]


def share_samples(
    samples: Sequence[TrainingSample], atom: Literal["trajectory", "group"], shares: int
) -> list[list[TrainingSample]]:
    """One mini-batch dealt out by whole atoms.

    Args:
        samples: The rows of the mini-batch.
        atom: What one rank must see whole: ``Loss.atom``.
        shares: How many parts.
    """
    atoms: dict[int, list[int]] = {}
    for place, sample in enumerate(samples):
        atoms.setdefault(sample.group if atom == "group" else sample.trajectory, []).append(place)
    rows = list(atoms.values())
    parts = share_out(
        [sum(len(samples[place].tokens) for place in places) for places in rows], shares
    )
    return [[samples[place] for one in part for place in rows[one]] for part in parts]
