"""Whether the engine really holds the trainer's weights.

Status codes and versions prove nothing; equal log-probs do. After the first
weight sync and every `INTERVAL`-th, both compute the log-probs of the same few
rows.
"""

from collections.abc import Sequence

import numpy as np

from skyrl_kernel.errors import WeightSyncError
from skyrl_kernel.protocols import Engine, Trainer
from skyrl_kernel.records import IntArray

INTERVAL = 10
"""Syncs between two probes: often enough to find a stale engine early, too seldom to be felt."""
MAX_ROWS = 2
MAX_DIFFERENCE = {"float32": 1e-3, "bfloat16": 0.5}
"""Most nats by which one token's log-probs may differ. Rounding stays below a tenth of it; a missed
update of an ordinary step does not."""


async def probe(
    trainer: Trainer, engine: Engine, rows: Sequence[IntArray], version: int, precision: str
) -> None:
    """Compare both models' log-probs of ``rows``.

    Args:
        trainer: Has the weights of ``version``.
        engine: Says that it has them.
        rows: [T] tokens each; at most `MAX_ROWS` are used.
        version: For the message.
        precision: ``float32`` or ``bfloat16``.

    Raises:
        WeightSyncError: They differ.
    """
    rows = rows[:MAX_ROWS]
    mine = trainer.score("policy", rows, temperature=1.0)
    theirs = await engine.logprobs(rows, temperature=1.0)
    difference = max(float(np.abs(a - b).max()) for a, b in zip(mine, theirs, strict=True))
    if not difference <= MAX_DIFFERENCE[precision]:
        raise WeightSyncError(
            f"after the sync of policy version {version}, engine and trainer differ by "
            f"{difference:.3g} nats on the same tokens (at most {MAX_DIFFERENCE[precision]:g} is "
            "rounding): the engine does not hold the weights that the trainer sent; look at "
            "generator.inference_engine.weight_sync_backend and its plugin"
        )
