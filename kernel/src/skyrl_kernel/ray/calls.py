"""Waiting for actors, and what they raised as this process would have raised it."""

import asyncio
import math
import time
from collections.abc import Sequence
from typing import Any

import ray
from ray.exceptions import RayError

from skyrl_kernel.errors import RankError
from skyrl_kernel.logs import get_logger
from skyrl_kernel.ray.errors import FOLLOWS, Process, as_run_error, gravity, is_of_another

GRACE_S = 10.0
"""For the others to say what they found, once one rank has failed: the first to be heard of may
only have lost its partner."""
LONG_S = 600.0
"""A wait of that length is spoken of, and again whenever it has doubled: who waits for a partner in a
collective has a deadline, and a process that hangs alone has none."""

log = get_logger(__name__)


def get(reference: Any, who: Process) -> Any:
    """The answer of one actor.

    Raises:
        SkyrlError: What it raised, or that it is gone.
    """
    try:
        return ray.get(reference)
    except RayError as error:
        raise as_run_error(error, who) from None


async def answer(reference: Any, who: Process) -> Any:
    """`get` on an event loop."""
    try:
        return await reference
    except RayError as error:
        raise as_run_error(error, who) from None


async def answers_of(references: Sequence[Any], who: Sequence[Process]) -> list[Any]:
    """`get_all` on an event loop, without a longest wait of its own.

    Raises:
        SkyrlError: As there.
    """
    asked = {
        asyncio.ensure_future(answer(*one)): one[1] for one in zip(references, who, strict=True)
    }
    try:
        done, waiting = await asyncio.wait(asked, return_when=asyncio.FIRST_EXCEPTION)
        if any(one.exception() for one in done) and waiting:
            more, waiting = await asyncio.wait(waiting, timeout=GRACE_S)
            done |= more
        failures = [(error, asked[one]) for one in done if (error := one.exception())]
        if failures:
            raise _cause(failures, [asked[one] for one in waiting])
        return [one.result() for one in asked]
    finally:
        for one in asked:
            one.cancel()


def get_all(
    references: Sequence[Any], who: Sequence[Process], within_s: float | None = None
) -> list[Any]:
    """The answers of all; a failure of one is raised although others may still wait for it.

    Args:
        references: Of each, to its answer.
        who: Gives it.
        within_s: Longest wait; None: as long as it takes.

    Raises:
        SkyrlError: What was found by the one who knows best; see `gravity`. If all only lost a
            partner, those who say nothing are named.
        TimeoutError: Some gave none in that time, and nobody failed; names them.
    """
    waiting = dict(zip(references, who, strict=True))
    failures: list[tuple[BaseException, Process]] = []
    began, long_s = time.monotonic(), LONG_S
    until = math.inf if within_s is None else began + within_s
    while waiting:
        left = max(min(until, began + long_s) - time.monotonic(), 0.0)
        done, _ = ray.wait(list(waiting), num_returns=1, timeout=left, fetch_local=False)
        if not done and until <= began + long_s:
            break
        if not done:
            _tell_long(list(waiting.values()), long_s)
            long_s *= 2
        for reference in done:
            process = waiting.pop(reference)
            try:
                ray.get(reference)
            except RayError as error:
                if not failures:
                    until = min(until, time.monotonic() + GRACE_S)
                failures.append((as_run_error(error, process), process))
    if failures:
        raise _cause(failures, list(waiting.values()))
    if waiting:
        raise TimeoutError(f"{', '.join(map(str, waiting.values()))}: no answer in {within_s:g} s")
    return list(ray.get(list(references)))


def _tell_long(silent: Sequence[Process], seconds: float) -> None:
    log.warning(
        f"{', '.join(map(str, silent))}: no answer for {seconds:g} s. Its work may take so long, and then "
        "nothing is to be done; or it hangs, where nobody who has a deadline waits for it: then end "
        "the run with Ctrl-C, and the same command goes on after the newest checkpoint"
    )


def _cause(
    failures: Sequence[tuple[BaseException, Process]], silent: Sequence[Process]
) -> BaseException:
    cause, _ = min(failures, key=lambda one: (gravity(one[0]), is_of_another(*one)))
    kinds = {who.kind for _, who in failures}
    partners = [who for who in silent if who.kind in kinds]  # others may still compute
    if not partners or gravity(cause) < FOLLOWS:
        return cause
    return RankError(
        f"{', '.join(map(str, partners))} does not answer: it hangs, or its machine is cut off. "
        f"Its partners say: {cause}"
    )
