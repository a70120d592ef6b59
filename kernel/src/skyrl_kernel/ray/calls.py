"""Waiting for actors, and what they raised as this process would have raised it."""

import time
from collections.abc import Sequence
from typing import Any

import ray
from ray.exceptions import GetTimeoutError, RayActorError, RayError, RayTaskError

from skyrl_kernel.errors import RunError, SkyrlError

GRACE_S = 10.0
"""For the others to say what they found, once one rank has failed: the first to be heard of may
only have lost its partner."""


def told(error: BaseException, who: str) -> BaseException:
    """What ``error`` of an actor means here.

    Args:
        error: Raised by `ray.get`, or by awaiting a reference.
        who: The actor, for the message.
    """
    if isinstance(error, RayTaskError):
        cause = error.cause if isinstance(error.cause, Exception) else error
        # A full disk is told from the number of an OSError.
        known = isinstance(cause, (SkyrlError, OSError))
        return cause if known else RunError(f"{who} failed: {cause!r}")
    if isinstance(error, RayActorError):
        reason = " ".join(str(error).split())
        return RunError(f"{who} has died: {reason}")
    if isinstance(error, RayError) and not isinstance(error, GetTimeoutError):
        return RunError(f"{who} gave no answer: {type(error).__name__}: {error}")
    return error


def get(reference: Any, who: str, timeout_s: float | None = None) -> Any:
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


async def answer(reference: Any, who: str) -> Any:
    """`get` on an event loop."""
    try:
        return await reference
    except RayError as error:
        raise told(error, who) from None


def get_all(references: Sequence[Any], who: Sequence[str]) -> list[Any]:
    """The answers of all; a failure of one is raised although others may still wait for it.

    Raises:
        SkyrlError: What was found by the one who knows best: an error of its own before the
            death of another.
    """
    waiting = dict(zip(references, who, strict=True))
    failures: list[BaseException] = []
    until: float | None = None
    while waiting:
        left = None if until is None else max(until - time.monotonic(), 0.0)
        done, _ = ray.wait(list(waiting), num_returns=1, timeout=left, fetch_local=False)
        if not done:
            break
        for reference in done:
            name = waiting.pop(reference)
            try:
                ray.get(reference)
            except RayError as error:
                failures.append(told(error, name))
                until = until or time.monotonic() + GRACE_S
    if failures:
        raise min(failures, key=_is_about_another)
    return list(ray.get(list(references)))


def _is_about_another(error: BaseException) -> bool:
    """True of what a rank says that only lost its partner."""
    text = str(error)
    return any(sign in text for sign in ("Connection closed by peer", "connection reset"))
