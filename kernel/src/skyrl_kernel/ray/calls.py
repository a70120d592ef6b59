"""Waiting for actors, and what they raised as this process would have raised it."""

import time
from collections.abc import Sequence
from typing import Any

import ray
from ray.exceptions import GetTimeoutError, RayError

from skyrl_kernel.errors import RankError
from skyrl_kernel.ray.errors import FOLLOWS, Process, gravity, is_of_another, told

GRACE_S = 10.0
"""For the others to say what they found, once one rank has failed: the first to be heard of may
only have lost its partner."""


def get(reference: Any, who: Process, timeout_s: float | None = None) -> Any:
    """The answer of one actor.

    Raises:
        SkyrlError: What it raised, or that it is gone.
        TimeoutError: It gave none within ``timeout_s``.
    """
    try:
        return ray.get(reference, timeout=timeout_s)
    except GetTimeoutError:
        raise TimeoutError(f"{who} gave no answer within {timeout_s:g} s") from None
    except RayError as error:
        raise told(error, who) from None


async def answer(reference: Any, who: Process) -> Any:
    """`get` on an event loop."""
    try:
        return await reference
    except RayError as error:
        raise told(error, who) from None


def get_all(references: Sequence[Any], who: Sequence[Process]) -> list[Any]:
    """The answers of all; a failure of one is raised although others may still wait for it.

    Raises:
        SkyrlError: What was found by the one who knows best; see `gravity`. If all only lost a
            partner, those who say nothing are named.
    """
    waiting = dict(zip(references, who, strict=True))
    failures: list[tuple[BaseException, Process]] = []
    until: float | None = None
    while waiting:
        left = None if until is None else max(until - time.monotonic(), 0.0)
        done, _ = ray.wait(list(waiting), num_returns=1, timeout=left, fetch_local=False)
        if not done:
            break
        for reference in done:
            process = waiting.pop(reference)
            try:
                ray.get(reference)
            except RayError as error:
                failures.append((told(error, process), process))
                until = until or time.monotonic() + GRACE_S
    if failures:
        raise _cause(failures, list(waiting.values()))
    return list(ray.get(list(references)))


def _cause(
    failures: Sequence[tuple[BaseException, Process]], silent: Sequence[Process]
) -> BaseException:
    cause, _ = min(failures, key=lambda one: (gravity(one[0]), is_of_another(*one)))
    if not silent or gravity(cause) < FOLLOWS:
        return cause
    return RankError(
        f"{', '.join(map(str, silent))} does not answer: it hangs, or its machine is cut off. "
        f"Its partners say: {cause}"
    )
