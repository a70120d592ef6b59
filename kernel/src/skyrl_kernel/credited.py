"""What a step trains on, group by group, and all its token rows joined.

Checks, metrics, sentinels and the trajectory file look at every token of a step.
They look at the columns here: each is joined once, when the first of them asks.
"""

from functools import cached_property

import numpy as np

from skyrl_kernel.protocols import CreditedGroup
from skyrl_kernel.records import BoolArray, FloatArray, Scores, Segment, TokenAdvantages, Trajectory

_NO_MASK: BoolArray = np.zeros(0, dtype=np.bool_)
_NO_NUMBERS: FloatArray = np.zeros(0, dtype=np.float32)


class Credited(list[CreditedGroup]):
    """The groups of a step, each trajectory with its scores and its segments' advantages.

    Shapes: R segments, N tokens of all of them, segment after segment.
    """

    @cached_property
    def trajectories(self) -> list[Trajectory]:
        """In the order of the groups."""
        return [one.trajectory for group in self for one, _ in group]

    @cached_property
    def segments(self) -> list[Segment]:
        """[R] in the order of the trajectories."""
        return [segment for one in self.trajectories for segment in one.segments]

    @cached_property
    def entries(self) -> list[TokenAdvantages]:
        """[R] what each segment was credited with."""
        return [entry for group in self for _, entries in group for entry in entries]

    @cached_property
    def scores(self) -> list[Scores]:
        """[R] under the models that were asked."""
        return [scores for group in self for one, _ in group for scores in one.scores]

    @cached_property
    def lengths(self) -> list[int]:
        """[R] tokens of each segment."""
        return [len(segment.tokens) for segment in self.segments]

    @cached_property
    def loss_mask(self) -> BoolArray:
        """[N] what is trained on."""
        return np.concatenate([entry.loss_mask for entry in self.entries] or [_NO_MASK])

    @cached_property
    def advantages(self) -> FloatArray:
        """[N] what each token was credited with."""
        return np.concatenate([entry.advantages for entry in self.entries] or [_NO_NUMBERS])

    @cached_property
    def trained_advantages(self) -> FloatArray:
        """Those of the tokens that are trained on, in order."""
        return self.advantages[self.loss_mask]

    @cached_property
    def rewards(self) -> list[float]:
        """What each trajectory earned in all, in task units; 0 where nothing was judged."""
        return [one.total_reward for one in self.trajectories]
