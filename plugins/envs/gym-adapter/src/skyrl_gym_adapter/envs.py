"""The two ways in which a skyrl-gym class runs here: in this process, or in the sandbox."""

import multiprocessing
from collections.abc import Mapping, Sequence
from typing import Any

from skyrl_gym_adapter.episode import Episode, find
from skyrl_gym_adapter.recipe import Recipe
from skyrl_gym_adapter.workers import GymWorker, worker_for
from skyrl_kernel.env import EnvStep
from skyrl_kernel.records import Message


class InProcessEnv:
    """A class that was declared harmless.

    Args:
        recipe: Which class.
        extras: Columns of the row.
    """

    isolate = False
    instant = False

    def __init__(self, recipe: Recipe, extras: dict[str, Any]) -> None:
        self._episode = Episode(find(recipe.name, recipe.source_here), recipe.env_config, extras)

    def init(self, prompt: Sequence[Message]) -> tuple[Sequence[Message], Mapping[str, Any]]:
        """The class's own."""
        messages, info = self._episode.init([dict(message) for message in prompt])
        return messages, info

    def step(self, action: str) -> EnvStep:
        """The class's own."""
        return self._episode.step(action)  # type: ignore[return-value]

    def get_metrics(self) -> Mapping[str, float]:
        """The class's own, through its `aggregate_metrics`."""
        return self._episode.metrics()

    def close(self) -> None:
        """The class's own."""
        self._episode.close()


class SandboxedEnv:
    """A class that may run what a model wrote: it lives in the sandbox, whole.

    The kernel gives it a process of its own; a worker in the sandbox belongs to that
    process and stays for the next episode, while each episode is a fork inside.

    Args:
        recipe: Which class.
        extras: Columns of the row.
    """

    isolate = True
    instant = False

    def __init__(self, recipe: Recipe, extras: dict[str, Any]) -> None:
        self._recipe = recipe
        self._extras = extras
        self._worker: GymWorker | None = None
        if multiprocessing.parent_process() is not None:  # the kernel allows for imports here
            worker_for(recipe)

    def init(self, prompt: Sequence[Message]) -> tuple[Sequence[Message], Mapping[str, Any]]:
        """The class's own."""
        self._worker = worker_for(self._recipe)
        self._ask("open", env_config=dict(self._recipe.env_config), extras=self._extras)
        messages, info = self._ask("init", prompt=[dict(message) for message in prompt])
        return messages, info

    def step(self, action: str) -> EnvStep:
        """The class's own."""
        return self._ask("step", action=action)  # type: ignore[no-any-return]

    def get_metrics(self) -> Mapping[str, float]:
        """The class's own, through its `aggregate_metrics`."""
        return self._ask("metrics")  # type: ignore[no-any-return]

    def close(self) -> None:
        """The class's own; then everything that the episode left in the sandbox is ended."""
        if self._worker is not None and self._worker.alive:
            self._ask("close")
        self._worker = None

    def _ask(self, what: str, **request: Any) -> Any:
        assert self._worker is not None, "init comes first"
        return self._worker.ask(what, **request)
