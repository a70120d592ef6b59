"""One weight sync, under its deadline."""

from collections.abc import Callable, Coroutine
from types import FrameType
from typing import Any

from skyrl_kernel.blocked import watched
from skyrl_kernel.errors import WeightSyncError
from skyrl_kernel.plan import Plan
from skyrl_kernel.plugins.attribution import running_owner
from skyrl_kernel.rollout.deadline import CallTimeout, given_up_after

_HOOK = "sync_weights"
_DEADLINE = "generator.inference_engine.weight_sync_timeout_s"


async def within_deadline(
    sync: Coroutine[Any, Any, None], plan: Plan, version: int, warn: Callable[[str], None]
) -> None:
    """Wait for a weight sync, but not for ever.

    Code in it that does not await cannot be stopped. It is named at the deadline, and the sync has
    failed when it returns.

    Args:
        sync: All of it.
        plan: Names the parts, and has the deadline.
        version: Policy version that the engine gets.
        warn: Tells the user; is called from another thread.

    Raises:
        WeightSyncError: It was not done within
            ``generator.inference_engine.weight_sync_timeout_s``.
    """
    engine = plan.tree.generator.inference_engine
    timeout_s = engine.weight_sync_timeout_s

    def who(frame: FrameType) -> str:
        owner = running_owner(frame, plan.manager.entries)
        if owner is None:
            return f"code below hook '{_HOOK}'"
        plugin, place = owner
        return f"{plugin} in hook '{_HOOK}' ({place})"

    def tell(blocker: str, seconds: float) -> None:
        warn(
            f"{blocker} has blocked the run for {seconds:.1f} s, and {_DEADLINE}={timeout_s:g} s are over; "
            "what does not await cannot be stopped, so the run ends when it returns"
        )

    is_late, place = False, ""
    with watched(timeout_s, who, tell) as watch:
        try:
            await given_up_after(sync, timeout_s)
        except CallTimeout as error:
            is_late, place = True, f"it waits in {error.place}"
    if watch.who is not None:
        is_late = True
        place = (
            f"{watch.who} blocked the run for {watch.seconds:.1f} s. Let it await, or call what blocks "
            "with asyncio.to_thread"
        )
    if is_late:
        stage = plan.stages[_HOOK].provider.name
        raise WeightSyncError(
            f"the sync of policy version {version} to the engine '{engine.backend}' by '{stage}' was not "
            f"done within {_DEADLINE}={timeout_s:g} s; {place}. Look at the engine's log, or raise the "
            "deadline if weights take longer"
        )
