"""Every group is trained on."""

from collections.abc import Sequence

import numpy as np

from skyrl_kernel.hookspecs import hookimpl
from skyrl_kernel.protocols import Select
from skyrl_kernel.records import Group, Selection


@hookimpl
def select(name: str) -> Select | None:
    """Keep every group that has a trajectory left."""
    return keep_all if name == "keep_all" else None


def keep_all(candidates: Sequence[Group], target: int, rng: np.random.Generator) -> Selection:
    """Drop only groups of which every trajectory was lost."""
    return Selection(
        verdicts=tuple("keep" if group.trajectories else "drop" for group in candidates),
        reasons=tuple(
            "" if group.trajectories else "all trajectories lost" for group in candidates
        ),
    )
