"""Every group is trained on."""

from collections.abc import Sequence

import numpy as np

from skyrl_kernel.hookspecs import hookimpl
from skyrl_kernel.protocols import Select
from skyrl_kernel.records import Group, Selection, Verdict


@hookimpl
def select(name: str) -> Select | None:
    """Keep every group that has a trajectory left."""
    return keep_all if name == "keep_all" else None


def keep_all(candidates: Sequence[Group], target: int, rng: np.random.Generator) -> Selection:
    """Drop a group of which everything was lost; mask what is alone because all others were lost."""
    decided = [_decide(group) for group in candidates]
    return Selection(
        verdicts=tuple(verdict for verdict, _ in decided),
        reasons=tuple(reason for _, reason in decided),
    )


def _decide(group: Group) -> tuple[Verdict, str]:
    if not group.trajectories:
        return "drop", "all trajectories lost"
    if group.failures and len(group.trajectories) == 1:
        return "mask", "all trajectories but one lost: nothing to compare it with"
    return "keep", ""
