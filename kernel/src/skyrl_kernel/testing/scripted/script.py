"""What the fakes do in one run, and what they were asked."""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from skyrl_kernel.records import Sampling

if TYPE_CHECKING:
    from skyrl_kernel.testing.scripted.engine import ScriptedEngine
    from skyrl_kernel.testing.scripted.trainer import ScriptedTrainer

NAME = "scripted"
"""The plugin's name, in every group."""
COUNTING = "counting"
"""Of the engine that counts its work."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Ask:
    """One request, as a reply is made from it."""

    text: str
    """The row so far, special tokens left out."""
    number: int
    """How many requests the engine had before, over the whole run."""
    seed: int
    version: int
    """Policy version of the weights when the request came."""
    sampling: Sampling


def bit(ask: Ask) -> str:
    """0 or 1 by the request's seed; always 0, the "most likely", at temperature 0."""
    return "0" if ask.sampling.temperature == 0 else str(ask.seed % 2)


@dataclass(kw_only=True)
class Script:
    """One run's behaviour and record.

    Example:
        >>> script = Script(reply=lambda ask: ask.text[-1], lockstep=True)
        >>> script.events
        []
    """

    reply: Callable[[Ask], str] = bit
    """The completion's text; raising fails the request."""
    latency_s: Callable[[Ask], float] = lambda ask: 0.0
    """Event-loop seconds that a completion takes."""
    lockstep: bool = False
    """`Engine.lockstep`."""
    rate: float = 1e-3
    """How far an update moves the trainer's weight; 0 leaves it."""
    on_update: Callable[[int], None] = lambda number: None
    """Called inside each update, in the trainer's thread, with the updates before it."""
    events: list[str] = field(default_factory=list)
    """What happened, in order: ``ask 3``, ``answer 3``, ``update``, ``sync 1``, ``forget``, ``save``,
    ``export``, ``sleep 2``, ``wake weights``, ``wake kv_cache``, ``offload``, ``onload``."""
    engine: "ScriptedEngine | None" = None
    """The engine made last."""
    trainer: "ScriptedTrainer | None" = None
    """The trainer made last."""
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def note(self, event: str) -> None:
        """Write down an event; safe from any thread."""
        with self._lock:
            self.events.append(event)


_current = Script()


def current() -> Script:
    """The script that the plugin's hooks follow."""
    return _current


@contextmanager
def perform(script: Script) -> Iterator[Script]:
    """Let the plugin's hooks follow ``script``."""
    global _current
    before, _current = _current, script
    try:
        yield script
    finally:
        _current = before
