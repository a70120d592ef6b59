"""Groups whose rewards are all equal are not trained on, around any selection.

They stay in the batch, masked: no tokens of theirs count in the loss or in its
normalisation, and no others are generated for them. With
``trainer.fully_async.sample_full_batch`` they are dropped, and others are.
"""

from collections.abc import Generator, Sequence

import numpy as np

from skyrl_kernel.config.algorithm import AlgorithmConfig
from skyrl_kernel.config.trainer import FullyAsyncConfig
from skyrl_kernel.hookspecs import hookimpl
from skyrl_kernel.protocols import Select, Settings
from skyrl_kernel.records import EQUAL_REWARDS, Group, Selection, Verdict


@hookimpl(wrapper=True)
def select(settings: Settings) -> Generator[None, Select | None, Select | None]:
    """Mask or drop such groups, where ``trainer.algorithm.zero_variance_filter`` asks for it."""
    inner = yield
    algorithm, ahead = settings[AlgorithmConfig], settings[FullyAsyncConfig]
    if inner is None or not algorithm.zero_variance_filter:
        return inner
    replaces = ahead.enabled and ahead.sample_full_batch
    return filtered(inner, algorithm.zero_variance_filter_tol, "drop" if replaces else "mask")


def filtered(inner: Select, tolerance: float, refusal: Verdict = "mask") -> Select:
    """``inner``, with ``refusal`` for what it would keep but whose rewards spread at most ``tolerance``."""

    def decide(candidates: Sequence[Group], target: int, rng: np.random.Generator) -> Selection:
        selection = inner(candidates, target, rng)
        verdicts: list[Verdict] = []
        reasons: list[str] = []
        for group, verdict, reason in zip(
            candidates, selection.verdicts, selection.reasons, strict=True
        ):
            is_flat = verdict == "keep" and has_equal_rewards(group, tolerance)
            verdicts.append(refusal if is_flat else verdict)
            reasons.append(EQUAL_REWARDS if is_flat else reason)
        stand_ins = {
            place: other
            for place, other in selection.stand_ins.items()
            if verdicts[other] == "keep"
        }
        return Selection(verdicts=tuple(verdicts), reasons=tuple(reasons), stand_ins=stand_ins)

    return decide


def has_equal_rewards(group: Group, tolerance: float) -> bool:
    """True if the total rewards of the group spread at most ``tolerance``.

    Only trajectories with a trained token count; with fewer than two of them
    there is nothing to compare, and the answer is False.
    """
    totals = [
        one.reward.total
        for one in group.trajectories
        if one.reward is not None and any(segment.loss_mask.any() for segment in one.segments)
    ]
    return len(totals) > 1 and max(totals) - min(totals) <= tolerance
