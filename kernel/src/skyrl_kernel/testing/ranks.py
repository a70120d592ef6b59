"""Several processes that are the ranks of one job, for tests of trainers that are sharded.

Each finds torchrun's variables in its environment (``RANK``, ``WORLD_SIZE``, ``LOCAL_RANK``,
``LOCAL_WORLD_SIZE``, ``MASTER_ADDR``, ``MASTER_PORT``) and runs the same function::

    def total(number):
        dist.init_process_group("gloo")
        ...

    assert on_ranks(2, total, 5) == [10, 10]

The processes live on and take the next job, so that a test session imports torch once
per rank, not once per test. They end with this process.
"""

import atexit
import faulthandler
import importlib
import importlib.util
import multiprocessing
import os
import pickle
import signal
import socket
import sys
import time
import traceback
from collections.abc import Callable
from contextlib import suppress
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from types import ModuleType
from typing import Any

DEADLINE_S = 120.0
"""Longest job, unless told otherwise."""
_HOST = "127.0.0.1"
_START_S = 120.0
_CLOSE_S = 5.0
_READY, _GO = b"ready", "go"


class RanksFailed(Exception):
    """A job did not return on every rank.

    Args:
        message: Which rank, and its error.
        outcomes: By rank: what it returned, or the exception that ended it.
    """

    def __init__(self, message: str, outcomes: list[Any]) -> None:
        super().__init__(message, outcomes)
        self.outcomes = outcomes

    def __str__(self) -> str:
        return str(self.args[0])


class RankEnded(Exception):
    """A rank's process ended, or did not return before the deadline; says which."""


def on_ranks(
    number: int, function: Callable[..., Any], *args: Any, deadline_s: float = DEADLINE_S
) -> list[Any]:
    """Run ``function(*args)`` on each of ``number`` ranks; what each returns, by rank.

    Args:
        number: Of ranks.
        function: Of a module's top level; a test module will do.
        args: Picklable.
        deadline_s: When ranks that have not returned are killed; counted from when all are ready.

    Raises:
        RanksFailed: A rank raised, ended or did not return; it has what became of each.
        ValueError: The function is a lambda or stands in another one.
    """
    return _POOL.run(number, function, *args, deadline_s=deadline_s)


class RankPool:
    """Live processes that are the ranks of one job after another."""

    def __init__(self) -> None:
        self._members: list[tuple[BaseProcess, Connection]] = []

    def run(
        self,
        number: int,
        function: Callable[..., Any],
        *args: Any,
        deadline_s: float = DEADLINE_S,
    ) -> list[Any]:
        """As `on_ranks`."""
        if "<" in function.__qualname__:
            raise ValueError(
                f"{function.__qualname__} cannot run in another process: give a function of a "
                "module's top level"
            )
        while len(self._members) < number:
            self._members.append(_started())
        job = (
            function.__module__,
            function.__code__.co_filename,
            function.__qualname__,
            pickle.dumps(args),
        )
        port = _free_port()
        members = self._members[:number]
        for rank, (_, pipe) in enumerate(members):
            pipe.send((_torchrun(rank, number, port), *job))
        self._start_together(members)
        outcomes, where = self._outcomes(members, deadline_s)
        failed = [rank for rank, one in enumerate(outcomes) if isinstance(one, BaseException)]
        if not failed:
            return outcomes
        lines = [
            f"rank {rank} of {number}: {type(outcomes[rank]).__name__}: {outcomes[rank]}"
            for rank in failed
        ]
        raise RanksFailed("\n".join([*lines, *where]), outcomes)

    def _start_together(self, members: list[tuple[BaseProcess, Connection]]) -> None:
        """Once all have imported what the job needs, so that no rank waits for another's start."""
        until = time.monotonic() + _START_S
        for _, pipe in members:
            with suppress(EOFError):  # told with the outcomes
                if pipe.poll(max(0.0, until - time.monotonic())):
                    pipe.recv_bytes()
        for _, pipe in members:
            with suppress(OSError):
                pipe.send(_GO)

    def _outcomes(
        self, members: list[tuple[BaseProcess, Connection]], deadline_s: float
    ) -> tuple[list[Any], list[str]]:
        """What became of each rank, and the traceback of the first that raised."""
        until = time.monotonic() + deadline_s
        outcomes: list[Any] = [None] * len(members)
        where: list[str] = []
        open_ranks = {pipe: rank for rank, (_, pipe) in enumerate(members)}
        while open_ranks:
            ready = wait(list(open_ranks), timeout=max(0.0, until - time.monotonic()))
            for pipe in ready or list(open_ranks):
                assert isinstance(pipe, Connection)
                rank = open_ranks.pop(pipe)
                process = members[rank][0]
                try:
                    if not ready:
                        raise TimeoutError
                    outcomes[rank], text = pickle.loads(pipe.recv_bytes())
                    where = where or ([text] if text else [])
                except TimeoutError:
                    outcomes[rank] = RankEnded(f"no answer within {deadline_s:g} s; killed")
                    _show_where_it_is(process)
                    self._drop(process, pipe)
                except (EOFError, OSError):
                    process.join(_CLOSE_S)
                    outcomes[rank] = RankEnded(f"its process ended with code {process.exitcode}")
                    self._drop(process, pipe)
        return outcomes, where

    def _drop(self, process: BaseProcess, pipe: Connection) -> None:
        self._members.remove((process, pipe))
        pipe.close()
        process.kill()
        process.join()
        process.close()

    def close(self) -> None:
        """End all processes."""
        for _, pipe in self._members:
            with suppress(OSError):
                pipe.send(None)
        for process, pipe in list(self._members):
            process.join(_CLOSE_S)
            self._drop(process, pipe)


def _started() -> tuple[BaseProcess, Connection]:
    ours, theirs = multiprocessing.Pipe()
    context = multiprocessing.get_context("spawn")
    process = context.Process(target=_serve, args=(theirs,), daemon=True)
    process.start()
    theirs.close()
    return process, ours


def _show_where_it_is(process: BaseProcess) -> None:
    """Its stack goes to stderr."""
    if process.pid is not None:
        os.kill(process.pid, signal.SIGABRT)
    process.join(_CLOSE_S)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind((_HOST, 0))
        port: int = probe.getsockname()[1]
    return port


def _torchrun(rank: int, number: int, port: int) -> dict[str, str]:
    return {
        "RANK": str(rank),
        "WORLD_SIZE": str(number),
        "LOCAL_RANK": str(rank),
        "LOCAL_WORLD_SIZE": str(number),
        "MASTER_ADDR": _HOST,
        "MASTER_PORT": str(port),
    }


def _serve(pipe: Connection) -> None:
    """A rank's process: one job after another."""
    faulthandler.enable()  # its stack at SIGABRT
    os.environ["OMP_NUM_THREADS"] = "1"  # before torch is imported: ranks share the cores
    while True:
        try:
            job = pipe.recv()
        except (EOFError, KeyboardInterrupt):
            return
        if job is None:
            return
        environment, module, file, name, args = job
        os.environ.update(environment)
        outcome: Any
        try:
            try:
                function = getattr(_module(module, file), name)
                arguments = pickle.loads(args)
            finally:
                pipe.send_bytes(_READY)
                pipe.recv()
            outcome, text = function(*arguments), ""
        except Exception as error:
            outcome, text = error, traceback.format_exc()
        _leave_group()
        try:
            sent = pickle.dumps((outcome, text))
            pickle.loads(sent)  # some exceptions cannot be read back
        except Exception as error:
            told = RuntimeError(
                f"{type(outcome).__name__}: {outcome} (which cannot be pickled: {error})"
            )
            sent = pickle.dumps((told, text))
        pipe.send_bytes(sent)


def _module(name: str, file: str) -> ModuleType:
    """The module that holds the job, also where it is a test file that nobody can import by name."""
    if name in sys.modules:
        return sys.modules[name]
    with suppress(ImportError):
        found = importlib.import_module(name)
        if found.__file__ and Path(found.__file__).samefile(file):
            return found
    spec = importlib.util.spec_from_file_location(name, file)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


def _leave_group() -> None:
    """A job that failed may have left its process group open."""
    if (distributed := sys.modules.get("torch.distributed")) is None:
        return
    if distributed.is_available() and distributed.is_initialized():
        with suppress(RuntimeError):
            distributed.destroy_process_group()


_POOL = RankPool()
atexit.register(_POOL.close)
