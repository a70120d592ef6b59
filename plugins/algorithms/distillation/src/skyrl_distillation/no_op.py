"""SkyRL's estimator ``no_op``: what a token earned is its advantage, and its return.

For rewards that already are advantages, such as those that a plugin of one's own
puts on single tokens. Rewards stand where the kernel puts them: a turn's on its
last token, a KL penalty on each (`skyrl_kernel.records.Scored.rewards_by_token`).
"""

from collections.abc import Sequence

from skyrl_kernel.hookspecs import hookimpl
from skyrl_kernel.protocols import Advantage
from skyrl_kernel.records import Scored, TokenAdvantages


@hookimpl
def advantage(name: str) -> Advantage | None:
    """The advantage of ``trainer.algorithm.advantage_estimator=no_op``."""
    return Advantage(fn=no_op) if name == "no_op" else None


def no_op(groups: Sequence[Sequence[Scored]]) -> list[list[tuple[TokenAdvantages, ...]]]:
    """Each token's reward.

    Example: a turn of two tokens that earned 1 gives ``[0, 1]``.
    """
    return [[_credited(one) for one in group] for group in groups]


def _credited(one: Scored) -> tuple[TokenAdvantages, ...]:
    return tuple(
        TokenAdvantages(advantages=rewards, loss_mask=segment.loss_mask, returns=rewards)
        for segment, rewards in zip(one.trajectory.segments, one.rewards_by_token(), strict=True)
    )
