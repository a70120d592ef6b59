"""One weight sync, under its deadline."""

from collections.abc import Coroutine
from typing import Any

from skyrl_kernel.errors import WeightSyncError
from skyrl_kernel.plan import Plan
from skyrl_kernel.rollout.deadline import CallTimeout, given_up_after


async def in_time(sync: Coroutine[Any, Any, None], plan: Plan, version: int) -> None:
    """Wait for a weight sync, but not for ever.

    Args:
        sync: All of it.
        plan: Names the parts, and has the deadline.
        version: Policy version that the engine gets.

    Raises:
        WeightSyncError: It was not done within
            ``generator.inference_engine.weight_sync_timeout_s``.
    """
    engine = plan.tree.generator.inference_engine
    timeout_s = engine.weight_sync_timeout_s
    try:
        await given_up_after(sync, timeout_s)
    except CallTimeout as error:
        stage = plan.stages["sync_weights"].provider.name
        raise WeightSyncError(
            f"the sync of policy version {version} to the engine '{engine.backend}' by '{stage}' was not "
            f"done within generator.inference_engine.weight_sync_timeout_s={timeout_s:g} s; it waits in "
            f"{error.place}. Look at the engine's log, or raise the deadline if weights take longer"
        ) from None
