"""Code that blocks stalls the whole event loop and cannot be cancelled: who does it is reported.

A thread of its own looks whether the loop still answers, and where its thread is if it does not.
"""

import asyncio
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import FrameType

_ANSWER_S = 0.5
"""An event loop that is only busy takes its turn within it."""
_LONGEST_S = threading.TIMEOUT_MAX / 2
"""A thread cannot wait for longer, and an event loop, which keeps the deadline itself, can."""


@dataclass
class Watch:
    """What was found of one call."""

    who: str | None = None
    """Who kept the loop past the deadline; None if nobody did."""
    _since: float = field(default_factory=time.monotonic)

    @property
    def seconds(self) -> float:
        """Since the watch began."""
        return time.monotonic() - self._since


@contextmanager
def watched(
    after_s: float, who: Callable[[FrameType], str], tell: Callable[[str, float], None]
) -> Iterator[Watch]:
    """Look after ``after_s`` seconds whether the event loop that runs here is kept by somebody.

    Args:
        after_s: The deadline that others keep.
        who: From the innermost frame of the loop's thread to who is to blame, in words.
        tell: Is called once, in another thread, with that and the seconds so far.
    """
    watch, answered = Watch(), threading.Event()
    loop, thread = asyncio.get_running_loop(), threading.get_ident()

    def look() -> None:
        loop.call_soon_threadsafe(answered.set)
        frame = None if answered.wait(_ANSWER_S) else sys._current_frames().get(thread)
        if frame is not None:
            watch.who = who(frame)
            tell(watch.who, watch.seconds)

    timer = threading.Timer(min(after_s, _LONGEST_S), look)
    timer.daemon = True
    timer.start()
    try:
        yield watch
    finally:
        timer.cancel()
        answered.set()
        timer.join()
