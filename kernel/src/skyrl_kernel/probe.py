"""Whether the engine really holds the trainer's weights.

Status codes and versions prove nothing; equal log-probs do. After the first
weight sync, the second, which is the first to bring weights that changed, and
every `INTERVAL`-th, both compute the log-probs of the same few rows.
"""

from collections.abc import Sequence
from typing import Literal

import numpy as np

from skyrl_kernel.errors import WeightSyncError
from skyrl_kernel.protocols import Engine
from skyrl_kernel.records import FloatArray, IntArray

INTERVAL = 10
"""Syncs between two probes: often enough to find a stale engine early, too seldom to be felt."""
FIRST_CHANGE = 1
"""Number of the sync, from 0, that is the first one after an update."""
MAX_ROWS = 2
MAX_TOKENS = 128
"""Of one row; a longer one is cut: what differs differs at its beginning, and an engine may have
fewer positions than the longest prompt."""
MAX_DIFFERENCE = {"float32": 1e-3, "bfloat16": 0.5}
"""Most nats by which one token's log-probs may differ. Rounding stays below a tenth of it. A missed
update of an ordinary step does not in float32; in bfloat16 a small one is lost among the rounding, and
what is found are other weights, or those of many steps before."""

Precision = Literal["float32", "bfloat16"]


def coarser(*, bf16: bool, engine_dtype: str | None) -> Precision:
    """What rounding of trainer and engine together is to be measured with.

    Args:
        bf16: ``trainer.bf16``.
        engine_dtype: ``generator.inference_engine.model_dtype``; None is the trainer's.

    Example:
        >>> coarser(bf16=False, engine_dtype="bfloat16"), coarser(bf16=True, engine_dtype="float32")
        ('bfloat16', 'bfloat16')
        >>> coarser(bf16=False, engine_dtype=None)
        'float32'
    """
    return "bfloat16" if bf16 or engine_dtype not in (None, "float32") else "float32"


def largest_difference(rows: Sequence[FloatArray], others: Sequence[FloatArray]) -> float:
    """Most nats between the log-probs of the same tokens; NaN if any is NaN.

    Example:
        >>> largest_difference([np.zeros(2), np.zeros(1)], [np.array([0.5, -1.0]), np.zeros(1)])
        1.0
        >>> largest_difference([np.zeros(1), np.zeros(1)], [np.zeros(1), np.array([np.nan])])
        nan
    """
    apart = [np.abs(a - b) for a, b in zip(rows, others, strict=True)]
    return float(np.concatenate(apart).max(initial=0.0)) if apart else 0.0


async def probe(
    engine: Engine,
    rows: Sequence[IntArray],
    expected: Sequence[FloatArray],
    version: int,
    precision: Precision,
) -> None:
    """Compare the engine's log-probs of ``rows`` with the trainer's.

    Args:
        engine: Says that it has the weights of ``version``.
        rows: [T] tokens each.
        expected: [T] log-probs each, of the trainer at temperature 1.
        version: For the message.
        precision: See `coarser`.

    Raises:
        WeightSyncError: They differ.
    """
    found = await engine.logprobs(rows, temperature=1.0)
    difference = largest_difference(expected, found)
    if not difference <= MAX_DIFFERENCE[precision]:
        raise WeightSyncError(
            f"after the sync of policy version {version}, engine and trainer differ by "
            f"{difference:.3g} nats on the same tokens (at most {MAX_DIFFERENCE[precision]:g} is "
            "rounding): the engine does not hold the weights that the trainer sent; look at "
            "generator.inference_engine.weight_sync_backend and its plugin"
        )
