"""Dynamic sampling by replacement: a group that teaches nothing gives its place to one that does.

An et al. 2025, "POLARIS", as SkyRL has it; no more is generated than one batch as
long as enough of it teaches something. Differences from SkyRL:

1. A group that is trained on twice is a prompt of its own in each place.
2. Where too few groups are good, those are kept and others generated in place of
   the rest; SkyRL throws the whole batch away.
3. The choice is seeded by ``trainer.seed`` and the step.
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
    """The selection of ``trainer.algorithm.dynamic_sampling.type=replace``."""
    if name != "replace":
        return None
    algorithm = settings[AlgorithmConfig]
    return partial(
        replace_even,
        tolerance=algorithm.zero_variance_filter_tol,
        least=algorithm.dynamic_sampling.min_replace_ratio,
    )


def replace_even(
    candidates: Sequence[Group],
    target: int,
    rng: np.random.Generator,
    *,
    tolerance: float,
    least: float,
) -> Selection:
    """Keep the groups whose rewards differ, and let them stand in for the others.

    Each stands in at most once if there are enough of them; otherwise they are
    drawn with replacement.

    Args:
        candidates: Groups kept so far, and those just generated.
        target: Groups of a batch.
        rng: Draws the stand-ins.
        tolerance: Largest spread of rewards that counts as equal.
        least: Fraction of good groups above which nothing else is generated.
    """
    flaws = tuple(flaw(group, tolerance) for group in candidates)
    good = [place for place, why in enumerate(flaws) if not why]
    bad = [place for place, why in enumerate(flaws) if why]
    stand_ins: dict[int, int] = {}
    if len(good) > least * len(candidates):
        drawn = rng.choice(good, size=len(bad), replace=len(bad) > len(good))
        stand_ins = dict(zip(bad, drawn.tolist(), strict=True))
    return Selection(
        verdicts=tuple("drop" if why else "keep" for why in flaws),
        reasons=flaws,
        stand_ins=stand_ins,
    )
