"""A control that must fail: advantages that belong to other trajectories of the batch.

Their size and number are right and whose they are is not, so that on average a
step goes nowhere.
"""

from collections.abc import Generator, Sequence
from dataclasses import replace

import numpy as np

from skyrl_kernel.config import TrainerConfig
from skyrl_kernel.hookspecs import hookimpl
from skyrl_kernel.protocols import Advantage, Settings
from skyrl_kernel.records import Scored, TokenAdvantages
from skyrl_kernel.rng import generator


@hookimpl(wrapper=True)
def advantage(settings: Settings) -> Generator[None, Advantage | None, Advantage | None]:
    """Deal the advantages of a batch out anew."""
    inner = yield
    return None if inner is None else shuffled(inner, settings[TrainerConfig].seed)


def shuffled(inner: Advantage, seed: int) -> Advantage:
    """``inner``, each trajectory credited with the mean advantage of one drawn without replacement.

    Which one depends on the seed and on the prompts of the batch.
    """

    def fn(groups: Sequence[Sequence[Scored]]) -> list[list[tuple[TokenAdvantages, ...]]]:
        credited = inner(groups)
        whose = ",".join(one.trajectory.id for group in groups for one in group)
        means = [mean_advantage(rows) for group in credited for rows in group]
        dealt = iter(generator(seed, "shuffled_advantages", whose).permutation(means))
        return [
            [
                tuple(
                    replace(entry, advantages=entry.loss_mask * np.float32(mean)) for entry in rows
                )
                for rows, mean in zip(group, dealt, strict=False)
            ]
            for group in credited
        ]

    return replace(inner, fn=fn)


def mean_advantage(rows: Sequence[TokenAdvantages]) -> float:
    """Over the trained tokens of a trajectory; 0 if it has none."""
    trained = np.concatenate([entry.advantages[entry.loss_mask] for entry in rows])
    return float(trained.mean()) if trained.size else 0.0
