"""Dynamic sampling: generate until the batch is full of groups that teach something.

Yu et al. 2025, arXiv:2503.14476, §3.2, eq. 11. The loop generates as many groups as
are missing, asks again, and gives up after
``trainer.algorithm.dynamic_sampling.max_sample_batches`` rounds.
"""

from collections.abc import Sequence
from functools import partial

import numpy as np

from skyrl_dapo.signal import flaw
from skyrl_kernel.config import AlgorithmConfig
from skyrl_kernel.hookspecs import hookimpl
from skyrl_kernel.protocols import Select, Settings
from skyrl_kernel.records import Group, Selection


@hookimpl
def select(name: str, settings: Settings) -> Select | None:
    """The selection of ``trainer.algorithm.dynamic_sampling.type=filter``."""
    if name != "filter":
        return None
    return partial(keep_uneven, tolerance=settings[AlgorithmConfig].zero_variance_filter_tol)


def keep_uneven(
    candidates: Sequence[Group], target: int, rng: np.random.Generator, *, tolerance: float
) -> Selection:
    """Keep the groups whose rewards differ, drop the others.

    Args:
        candidates: Groups kept so far, and those just generated.
        target: Groups of a batch.
        rng: Not used.
        tolerance: Largest spread of rewards that counts as equal.
    """
    flaws = tuple(flaw(group, tolerance) for group in candidates)
    return Selection(verdicts=tuple("drop" if why else "keep" for why in flaws), reasons=flaws)
