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
ROUNDING = {"float32": 1e-3, "bfloat16": 0.25}
"""Most nats between log-probs of the same tokens that are taken for rounding: in float32 of each
token; in bfloat16 on average, as a logit above 16 is rounded to an eighth there, and one token of
hundreds may be off by several. A missed update of an ordinary step is more than that in float32 alone;
in bfloat16 what is found are other weights, or those of many steps before."""

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


def difference(
    rows: Sequence[FloatArray], others: Sequence[FloatArray], precision: Precision
) -> str | None:
    """How log-probs of the same tokens differ, where that is no rounding; None where it is.

    Example:
        >>> ones, zeros = np.ones(4, np.float32), np.zeros(4, np.float32)
        >>> difference([zeros, zeros], [zeros, ones / 10], "float32")
        '0.1 nats on the same tokens (at most 0.001 is rounding)'
        >>> difference([zeros, zeros], [zeros, ones / 10], "bfloat16")
        >>> difference([zeros, zeros], [zeros, ones * np.nan], "bfloat16")
        'nan nats on the same tokens on average (at most 0.25 is rounding)'
    """
    if not rows:
        return None
    apart = np.abs(np.concatenate([a - b for a, b in zip(rows, others, strict=True)]))
    found, on = (apart.max(), "") if precision == "float32" else (apart.mean(), " on average")
    if found <= ROUNDING[precision]:
        return None
    return f"{found:.3g} nats on the same tokens{on} (at most {ROUNDING[precision]:g} is rounding)"


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
    if apart := difference(expected, found, precision):
        raise WeightSyncError(
            f"after the sync of policy version {version}, engine and trainer differ by {apart}: the engine "
            "does not hold the weights that the trainer sent; look at "
            "generator.inference_engine.weight_sync_backend and its plugin"
        )
