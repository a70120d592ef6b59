"""The processes of a run, from their start to their end."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import ray

from skyrl_kernel.errors import CapabilityError
from skyrl_kernel.ray.attest import require_same
from skyrl_kernel.ray.calls import get_all
from skyrl_kernel.ray.errors import Process
from skyrl_kernel.ray.interpreter import require_python
from skyrl_kernel.ray.logs import output_file
from skyrl_kernel.ray.monitor import Monitor
from skyrl_kernel.ray.placement import Seat
from skyrl_kernel.ray.waits import together, waiting_for
from skyrl_kernel.recipe import Recipe, joined


class Actors:
    """Starts them in seats, and holds them to the plugins of the run.

    Args:
        folder: Of their logs, absolute; they have none if it is not there.
        start_timeout_s: ``trainer.ray.start_timeout_s``.
        monitor: Measures the machines that they are on, if anybody does.
    """

    def __init__(self, folder: Path, *, start_timeout_s: float, monitor: Monitor | None) -> None:
        self.nodes: dict[str, str] = {}
        """Name of one that has a seat → Ray's id of its node."""
        self._folder = folder
        self._start_timeout_s = start_timeout_s
        self._monitor = monitor
        self._actors: list[Any] = []

    def start(
        self,
        kind: type,
        names: Sequence[str],
        seats: Sequence[Seat | None],
        recipe: Recipe,
        environment: Mapping[str, Any],
        *,
        is_here: bool,
        **options: Any,
    ) -> tuple[list[Any], list[Process]]:
        """An actor in each seat, held to the plugins of its recipe before it loads any.

        Args:
            kind: Class of each: a `skyrl_kernel.ray.member.Member`.
            names: Of each, for messages and logs.
            seats: Of each; None needs no device.
            recipe: What it will make.
            environment: Ray's ``runtime_env``; goes before the recipe's own, variable by variable.
            is_here: Whether all are on this machine, so that their Python can be looked at.
            options: More of Ray's, of each actor.

        Raises:
            CapabilityError: A machine does not see the run's folder, or has no such environment.
            PluginLoadError: A process has other plugins than the run.
        """
        if env := joined(recipe.runtime_env, environment):
            if is_here:
                require_python(env, names[0])
            options["runtime_env"] = env
        actors: list[Any] = [
            ray.remote(kind)
            .options(**(seat.options if seat else {"num_cpus": 0}), **options)
            .remote(name)
            for name, seat in zip(names, seats, strict=True)
        ]
        self._actors += actors
        self.nodes |= {name: seat.node for name, seat in zip(names, seats, strict=True) if seat}
        folder = self._folder if self._folder.is_dir() else None
        processes = [Process(name=name) for name in names]
        machines = self._begun([actor.begin.remote(folder) for actor in actors], processes)
        outputs = [None if folder is None else output_file(folder, name) for name in names]
        processes = [
            Process(name=name, where=machine, output=output)
            for name, machine, output in zip(names, machines, outputs, strict=True)
        ]
        reports = get_all([actor.report.remote(recipe.lock) for actor in actors], processes)
        for name, found in zip(names, reports, strict=True):
            require_same(recipe.lock, found, name)
        if self._monitor is not None:
            self._monitor.watch([seat.node for seat in seats if seat is not None], env)
        return actors, processes

    def _begun(self, machines: Sequence[Any], processes: Sequence[Process]) -> list[Any]:
        """The answers of processes that begin. One that cannot, Ray begins anew without end."""
        try:
            with waiting_for(f"{together(processes)} to start"):
                return get_all(machines, processes, self._start_timeout_s)
        except TimeoutError as error:
            raise CapabilityError(
                f"{error} (trainer.ray.start_timeout_s): Ray cannot start the process, or still makes what its "
                "runtime_env asks for. Look at trainer.ray.trainer_env, trainer.ray.engine_env and Ray's own "
                "logs, /tmp/ray/session_latest/logs on its node; raise the key if it only takes longer"
            ) from error

    def end(self) -> None:
        """End all, whatever they do."""
        for actor in self._actors:
            ray.kill(actor)
        self._actors.clear()
