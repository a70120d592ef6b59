"""Every trained token counts alike: the advantage of data that nobody judged."""

from collections.abc import Sequence

import numpy as np

from skyrl_kernel.hookspecs import hookimpl
from skyrl_kernel.protocols import Advantage
from skyrl_kernel.records import Scored, TokenAdvantages


@hookimpl
def advantage(name: str) -> Advantage | None:
    """The advantage of ``trainer.algorithm.advantage_estimator=uniform``."""
    return Advantage(fn=uniform) if name == "uniform" else None


def uniform(groups: Sequence[Sequence[Scored]]) -> list[list[tuple[TokenAdvantages, ...]]]:
    """Advantage 1 for every token of the loss mask."""
    return [
        [
            tuple(
                TokenAdvantages(
                    advantages=segment.loss_mask.astype(np.float32), loss_mask=segment.loss_mask
                )
                for segment in one.trajectory.segments
            )
            for one in group
        ]
        for group in groups
    ]
