"""Advantages of mean 0 and variance 1 over the trained tokens of a batch, around any advantage.

Source: Andrychowicz et al. 2021, "What Matters In On-Policy Reinforcement
Learning?", arXiv:2006.05990, choice C67. Tokens that are not trained on count
in neither statistic (in SkyRL, padding counts in the mean).
"""

from collections.abc import Generator, Sequence
from dataclasses import replace

import numpy as np

from skyrl_kernel.config.algorithm import AlgorithmConfig
from skyrl_kernel.hookspecs import hookimpl
from skyrl_kernel.protocols import Advantage, Settings
from skyrl_kernel.records import Scored, TokenAdvantages

MIN_VARIANCE = 1e-8
"""Below it a batch of equal advantages would be blown up."""


@hookimpl(wrapper=True)
def advantage(settings: Settings) -> Generator[None, Advantage | None, Advantage | None]:
    """Normalise, where ``trainer.algorithm.advantage_batch_normalize`` asks for it."""
    inner = yield
    if inner is None or not settings[AlgorithmConfig].advantage_batch_normalize:
        return inner
    return normalized(inner)


def normalized(inner: Advantage) -> Advantage:
    """``inner``, its advantages less their mean, over the root of their variance.

    Both are over the trained tokens of all groups; the variance divides by their
    number and counts as `MIN_VARIANCE` at least.
    """

    def fn(groups: Sequence[Sequence[Scored]]) -> list[list[tuple[TokenAdvantages, ...]]]:
        credited = inner(groups)
        entries = [entry for group in credited for rows in group for entry in rows]
        kept = [entry.advantages[entry.loss_mask].astype(np.float64) for entry in entries]
        flat = np.concatenate(kept) if kept else np.zeros(0)
        if not flat.size:
            return credited
        mean, scale = flat.mean(), 1 / np.sqrt(max(flat.var(), MIN_VARIANCE))

        def scaled(entry: TokenAdvantages) -> TokenAdvantages:
            advantages = ((entry.advantages - mean) * scale).astype(np.float32)
            return replace(entry, advantages=np.where(entry.loss_mask, advantages, np.float32(0)))

        return [[tuple(map(scaled, rows)) for rows in group] for group in credited]

    return replace(inner, fn=fn)
