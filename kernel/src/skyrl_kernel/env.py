"""What an environment is: SkyRL-Gym's text surface, and a small base class for it.

An env judges one conversation. The kernel makes a fresh one for every
trajectory, calls it under a deadline, and closes it whatever happens.
"""

from collections.abc import Awaitable, Mapping, Sequence
from typing import Any, NotRequired, Protocol, TypedDict, runtime_checkable

from skyrl_kernel.records import Message


class EnvStep(TypedDict):
    """What `Env.step` returns.

    Example:
        >>> EnvStep(observations=[], reward=1.0, done=True, metadata={})["reward"]
        1.0
    """

    observations: Sequence[Message]
    """The env's reply as chat messages; empty when done."""
    reward: float
    """Finite, in task units."""
    done: bool
    metadata: Mapping[str, Any]
    """Kept on the turn; must survive JSON."""
    postprocessed_action: NotRequired[str | None]
    """Replaces the completion's text in the conversation; re-encoded, and so not trained on unless it is
    the completion's own text."""


@runtime_checkable
class Env(Protocol):
    """One episode's judge. Methods may also be ``async``.

    Two class attributes, both False by default, say how it is called:
    ``isolate`` asks for a process of its own that the kernel may kill: set it
    where calls can hang. ``instant`` promises that making it and calling it take
    microseconds of Python and wait for nothing: the kernel then spares the trip
    to a worker thread. Both are under the same deadline.
    """

    def init(
        self, prompt: Sequence[Message]
    ) -> tuple[Sequence[Message], Mapping[str, Any]] | Awaitable[Any]:
        """Called once, first. Returns the prompt to use and free-form information."""
        ...

    def step(self, action: str) -> EnvStep | Awaitable[EnvStep]:
        """Judge one completion. Must end the episode itself by ``done``."""
        ...

    def close(self) -> Awaitable[None] | None:
        """Called once, last, also after a failure."""
        ...

    def get_metrics(self) -> Mapping[str, float] | Awaitable[Mapping[str, float]]:
        """Numbers about the finished episode, such as ``exact_match``."""
        ...


class TextEnv:
    """Base class with SkyRL-Gym's bookkeeping: `turns`, `max_turns` and neutral defaults.

    Args:
        extras: Columns of the row; ``max_turns`` among them limits the episode.
        max_turns: Limit where the row names none.
        cap: ``generator.max_turns``: shortens an episode, never lengthens it.

    Raises:
        ValueError: The row's ``max_turns`` is no number of turns.
    """

    isolate = False
    instant = False

    def __init__(
        self, extras: Mapping[str, Any], max_turns: int = 1, cap: int | None = None
    ) -> None:
        self.turns = 0
        own = extras.get("max_turns")
        limit = max_turns if own is None else read_turns(own, "max_turns")
        self.max_turns = limit if cap is None else min(limit, cap)

    def init(self, prompt: Sequence[Message]) -> tuple[Sequence[Message], Mapping[str, Any]]:
        """Keep the prompt as it is."""
        return prompt, {}

    def close(self) -> None:
        """Nothing to release."""

    def get_metrics(self) -> Mapping[str, float]:
        """No numbers."""
        return {}

    @staticmethod
    def aggregate_metrics(metrics: Sequence[Mapping[str, float]]) -> dict[str, float]:
        """Mean of each number over the episodes that report it.

        Example:
            >>> TextEnv.aggregate_metrics([{"steps": 1.0}, {"steps": 3.0}])
            {'steps': 2.0}
        """
        return mean_metrics(metrics)


def mean_metrics(metrics: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """Mean of each key over the mappings that have it, keys in first-seen order."""
    values: dict[str, list[float]] = {}
    for one in metrics:
        for key, value in one.items():
            values.setdefault(key, []).append(float(value))
    return {key: sum(column) / len(column) for key, column in values.items()}


def read_turns(value: Any, column: str) -> int:
    """A row's number of turns, from its column.

    Raises:
        ValueError: It is no whole number of at least 1.

    Example:
        >>> read_turns(3.0, "max_turns")
        3
    """
    try:
        turns = int(value)
        is_whole = turns == float(value)
    except (TypeError, ValueError, OverflowError):
        turns, is_whole = 0, False
    if not is_whole or turns < 1:
        raise ValueError(
            f"this row's {column} is {value!r}; it must be a whole number of at least 1, or null for "
            "the env's own"
        )
    return turns


def require_ground_truth(extras: Mapping[str, Any], env: str) -> str:
    """The row's ``reward_spec.ground_truth``.

    Raises:
        ValueError: The row carries none; names the env and the columns found.
    """
    spec = extras.get("reward_spec")
    if not isinstance(spec, Mapping) or spec.get("ground_truth") is None:
        raise ValueError(
            f"env '{env}' needs the column reward_spec with a field ground_truth; "
            f"this row has the columns: {', '.join(sorted(extras)) or 'none'}"
        )
    return str(spec["ground_truth"])
