"""Workers in the sandbox: what one is given of this machine, and which is ready."""

import importlib.machinery
import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from skyrl_gym_adapter.ports import Ports
from skyrl_gym_adapter.recipe import Recipe
from skyrl_kernel.errors import FailureKind, TrajectoryError

_HANDLER = "skyrl_gym_adapter.inside:handle"
_NO_DEADLINE_S = 1e6
"""The kernel has the deadline: it ends this whole process, and the sandbox with it."""
_IMPORT_S = 60.0
"""For the modules of a class."""


class GymWorker:
    """A worker in the sandbox that has loaded a class.

    Args:
        recipe: Which class, and what it may use.

    Raises:
        UsageError: There is no sandbox here.
        WorkerError: The class was not found, or cannot be imported inside.
    """

    def __init__(self, recipe: Recipe) -> None:
        from skyrl_sandbox import Interpreter, Limits, Sandbox, Worker

        places = [_locate(module, recipe.source["folders"]) for module in recipe.modules]
        found = [place for place in places if place is not None]
        folders = [*recipe.source["folders"], *(str(place.folder) for place in found)]
        self._ports = Ports(recipe.ports)
        try:
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
                    *map(Path, recipe.source["folders"]),
                    *(path for place in found for path in place.paths),
                    *_named_paths(recipe.env_config),
                    *self._ports.files.values(),
                ],
                python_path=[Path(__file__).parents[1]],
                environment={"PATH": f"{Path(sys.executable).parent}:/usr/local/bin:/usr/bin:/bin"},
            )
            self._worker = Worker(sandbox, _HANDLER)
        except BaseException:
            self._ports.close()
            raise
        request = {
            "do": "load",
            "name": recipe.name,
            "source": {**recipe.source, "folders": list(dict.fromkeys(folders))},
            "ports": {str(port): str(file) for port, file in self._ports.files.items()},
        }
        try:
            self._worker.call(request, timeout_s=_IMPORT_S)
        except BaseException:
            self.close()
            raise

    @property
    def alive(self) -> bool:
        """False once it has ended."""
        return self._worker.alive

    def ask(self, what: str, **request: Any) -> Any:
        """What `inside.handle` answers.

        Raises:
            WorkerError: The class raised.
            WorkerDied: It exceeded a limit.
            TrajectoryError: The worker ended otherwise, of the kind infrastructure.
        """
        from skyrl_sandbox import WorkerDied, WorkerError

        try:
            return self._worker.call({"do": what, **request})
        except WorkerError as error:
            raise WorkerError(error.message.removeprefix("EpisodeError: "), error.trace) from error
        except WorkerDied as error:
            if error.limit is not None:
                raise
            message = f"the sandbox of an env of skyrl-gym failed: {error}"
            raise TrajectoryError(FailureKind.INFRASTRUCTURE, message, "skyrl-gym") from error

    def close(self) -> None:
        """End it, with all that runs in it."""
        self._worker.close()
        self._ports.close()


_ready: dict[str, GymWorker] = {}
"""At most one: the kernel runs one env at a time in a process."""


def worker_for(recipe: Recipe) -> GymWorker:
    """The worker of this process for a recipe; another recipe's is ended first."""
    key = repr(recipe)
    worker = _ready.get(key)
    if worker is None or not worker.alive:
        close_workers()
        worker = _ready[key] = GymWorker(recipe)
    return worker


def close_workers() -> None:
    """End what this process keeps ready."""
    while _ready:
        _ready.popitem()[1].close()


# --- what it may read ---------------------------------------------------------------------


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


def _named_paths(env_config: Mapping[str, Any]) -> list[Path]:
    """Files and folders that the settings of a class name, such as ``db_path``."""
    texts = [value for value in env_config.values() if isinstance(value, str)]
    return [Path(text) for text in texts if text.startswith("/") and Path(text).exists()]
