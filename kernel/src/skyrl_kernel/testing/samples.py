"""Rows to train on, of random numbers, and the simplest loss: for tests of trainers."""

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from skyrl_kernel.records import Scores, TrainingSample

if TYPE_CHECKING:
    from skyrl_kernel.torch import LossInputs, LossTerms


def random_sample(
    number: int,
    mask: Sequence[bool],
    *,
    seed: int = 0,
    terms: Sequence[str] = ("policy",),
    **changed: Any,
) -> TrainingSample:
    """A trajectory of one row, in group 0; the same arguments give the same one.

    Args:
        number: Of the trajectory.
        mask: [T] its ``loss_mask``.
        seed: Of tokens (0 to 255), advantages, returns, values and weights.
        terms: Of the loss, each of which gets weights.
        changed: Fields with other contents.
    """
    rng = np.random.default_rng([seed, number])
    length = len(mask)
    made = TrainingSample(
        trajectory_id=f"p/{number}",
        group=0,
        trajectory=number,
        tokens=rng.integers(0, 256, length).astype(np.int32),
        loss_mask=np.array(mask, dtype=np.bool_),
        advantages=rng.normal(size=length).astype(np.float32),
        returns=rng.normal(size=length).astype(np.float32),
        sampler_logprobs=None,
        scores=Scores(values=rng.normal(size=length).astype(np.float32)),
        loss_weights={term: rng.random(length).astype(np.float32) for term in terms},
    )
    return replace(made, **changed)


def policy_gradient(inputs: "LossInputs") -> "LossTerms":
    """REINFORCE: each log-prob times its advantage."""
    from skyrl_kernel.torch import LossTerms

    return LossTerms(terms={"policy": -inputs.advantages * inputs.logprobs})
