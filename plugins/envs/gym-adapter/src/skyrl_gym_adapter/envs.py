"""The two ways in which a skyrl-gym class runs here: in this process, or in the sandbox."""

import importlib.machinery
import multiprocessing
import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from skyrl_gym_adapter.episode import Episode, Source, find
from skyrl_kernel.env import EnvStep
from skyrl_kernel.records import Message

if TYPE_CHECKING:
    from skyrl_sandbox import Worker

_HANDLER = "skyrl_gym_adapter.inside:handle"
_NO_DEADLINE_S = 1e6
"""The kernel has the deadline: it ends this whole process, and the sandbox with it."""
_IMPORT_S = 60.0
"""For the modules of a class."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Recipe:
    """All that it takes to make envs of one name."""

    name: str
    """A registered id, or ``module:Class``."""
    source: Source
    """Where its class is."""
    env_config: Mapping[str, Any]
    """What the class gets beside the row."""
    memory_mb: int
    """Of one env in the sandbox."""
    processes: int
    """Likewise."""


class InProcessEnv:
    """A class that was declared harmless.

    Args:
        recipe: Which class.
        extras: Columns of the row.
    """

    isolate = False
    instant = False

    def __init__(self, recipe: Recipe, extras: dict[str, Any]) -> None:
        spec = find(recipe.name, importable_here(recipe.source))
        self._episode = Episode(spec, recipe.env_config, extras)

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
        self._worker: Worker | None = None
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
        return self._worker.call({"do": what, **request})


def importable_here(source: Source) -> Source:
    """The source with the current folder, where ``python -m`` would also find a module."""
    return {**source, "folders": [*source["folders"], os.getcwd()]}


# --- workers ------------------------------------------------------------------------------

_warm: "dict[str, Worker]" = {}
"""At most one: the kernel runs one env at a time in a process."""


def worker_for(recipe: Recipe) -> "Worker":
    """The worker of this process for a recipe; another recipe's is ended first."""
    key = repr(recipe)
    worker = _warm.get(key)
    if worker is None or not worker.alive:
        close_workers()
        worker = _warm[key] = start_worker(recipe)
    return worker


def close_workers() -> None:
    """End what this process keeps ready."""
    while _warm:
        _warm.popitem()[1].close()


def start_worker(recipe: Recipe) -> "Worker":
    """A worker in the sandbox that has loaded the class.

    Raises:
        UsageError: There is no sandbox here.
        WorkerError: The class was not found, or cannot be imported inside.
    """
    from skyrl_sandbox import Interpreter, Limits, Sandbox, Worker

    source = recipe.source
    modules = [*source["modules"], *(entry.partition(":")[0] for entry in _entries(recipe))]
    places = [place for module in modules if (place := _locate(module, source["folders"]))]
    folders = [*source["folders"], *(str(place.folder) for place in places)]
    sandbox = Sandbox(
        limits=Limits(
            wall_s=_NO_DEADLINE_S,
            cpu_s=None,
            memory_mb=recipe.memory_mb,
            processes=recipe.processes,
            output_kb=64 * 1024,  # an answer carries a whole conversation
        ),
        python=Interpreter.at(sys.executable),
        readable=[
            *map(Path, source["folders"]),
            *(path for place in places for path in place.paths),
            *_data_folders(recipe.env_config),
        ],
        python_path=[Path(__file__).parents[1]],
        environment={"PATH": f"{Path(sys.executable).parent}:/usr/local/bin:/usr/bin:/bin"},
    )
    worker = Worker(sandbox, _HANDLER)
    try:
        inside = {**source, "folders": list(dict.fromkeys(folders))}
        worker.call({"do": "load", "name": recipe.name, "source": inside}, timeout_s=_IMPORT_S)
    except BaseException:
        worker.close()
        raise
    return worker


def _entries(recipe: Recipe) -> list[str]:
    return [one for one in (recipe.name, *recipe.source["ids"].values()) if ":" in one]


@dataclass(frozen=True, slots=True)
class _Place:
    """Where a module is that did not come with the interpreter."""

    folder: Path
    """What must be on the path of modules."""
    paths: tuple[Path, ...]
    """What must be readable. Of a folder in which much else may lie, such as the current one,
    this is the one module or package."""


def _locate(module: str, folders: Sequence[str]) -> _Place | None:
    top = module.partition(".")[0]
    here = os.getcwd()
    for folder in (one or here for one in (*sys.path, *folders, here)):
        spec = importlib.machinery.PathFinder.find_spec(top, [folder])
        if spec is None:
            continue
        if any(Path(folder).is_relative_to(prefix) for prefix in (sys.prefix, sys.base_prefix)):
            return None
        paths = list(spec.submodule_search_locations or []) or [spec.origin or folder]
        return _Place(Path(folder).absolute(), tuple(Path(path).absolute() for path in paths))
    return None


def _data_folders(env_config: Mapping[str, Any]) -> list[Path]:
    """Files and folders that the settings of a class name, such as ``db_path``."""
    texts = [value for value in env_config.values() if isinstance(value, str)]
    return [Path(text) for text in texts if text.startswith("/") and Path(text).exists()]
