"""A control that must fail: every advantage with the wrong sign.

What did well is made less likely. A benchmark that such a run passes measures
something else than learning.
"""

from collections.abc import Generator, Sequence
from dataclasses import replace

from skyrl_kernel.hookspecs import hookimpl
from skyrl_kernel.protocols import Advantage
from skyrl_kernel.records import Scored, TokenAdvantages


@hookimpl(wrapper=True)
def advantage() -> Generator[None, Advantage | None, Advantage | None]:
    """Turn the sign of what the estimator says."""
    inner = yield
    return None if inner is None else flipped(inner)


def flipped(inner: Advantage) -> Advantage:
    """``inner``, negative; returns, which a critic learns, stay."""

    def fn(groups: Sequence[Sequence[Scored]]) -> list[list[tuple[TokenAdvantages, ...]]]:
        return [
            [
                tuple(replace(entry, advantages=-entry.advantages) for entry in rows)
                for rows in group
            ]
            for group in inner(groups)
        ]

    return replace(inner, fn=fn)
