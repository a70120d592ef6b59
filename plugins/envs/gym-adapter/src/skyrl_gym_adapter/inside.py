"""The worker in the sandbox: one episode at a time, each in a process of its own.

The first request imports the class; every episode is then a fork of that state, so
that it costs no import, and nothing that a model's code changed in one episode, in
memory or in files, is there in the next.
"""

import contextlib
import json
import os
import signal
import socket
import time
import traceback
from pathlib import Path
from typing import TYPE_CHECKING, Any

from skyrl_gym_adapter.episode import Episode, NoSuchEnv, find
from skyrl_gym_adapter.ports import open_inside

if TYPE_CHECKING:
    from skyrl_gym.envs.registration import EnvSpec  # type: ignore[import-untyped]

_WRITABLE = ("/tmp", "/dev/shm")
"""All that a program can write to in the sandbox."""
_END_S = 10.0
"""For all processes of an episode to be gone; it takes milliseconds."""

_spec: "EnvSpec | None" = None
_child: "_Child | None" = None
_first_files: set[Path] = set()
"""Folders that lead to what the sandbox shows of the host."""


def handle(request: dict[str, Any]) -> Any:
    """Answer one request: ``load``, ``open``, ``init``, ``step``, ``metrics`` or ``close``.

    Raises:
        NoSuchEnv: Of ``load``.
        EpisodeError: The class raised; or its process ended, which ends the episode.
    """
    global _spec, _child, _first_files
    what = request["do"]
    if what == "load":
        _first_files = _files()
        _spec = find(request["name"], request["source"])
        for port, file in request["ports"].items():
            open_inside(int(port), file)
        return None
    if what == "open":
        _end()
        assert _spec is not None, "load comes first"
        _child = _Child(_spec)
    if _child is None:
        if what == "close":  # its process has ended before
            return None
        raise EpisodeError("RuntimeError: no episode is open")
    answer = _child.ask(request)
    if what == "close":
        _end()
    return answer


class EpisodeError(RuntimeError):
    """``TypeName: message`` of what the class raised."""


class _Child:
    """The process of one episode."""

    def __init__(self, spec: "EnvSpec") -> None:
        ours, theirs = socket.socketpair()
        self._pid = os.fork()
        if self._pid == 0:
            try:
                _keep_only(theirs)
                _serve(theirs, spec)
            finally:
                os._exit(0)
        theirs.close()
        self._socket = ours
        self._lines = ours.makefile("rb")

    def ask(self, request: dict[str, Any]) -> Any:
        try:
            self._socket.sendall(json.dumps(request).encode() + b"\n")
            line = self._lines.readline()
        except OSError:
            line = b""
        if not line:
            _end()
            raise EpisodeError("ProcessLookupError: the env's process ended during a call")
        answer, problem = json.loads(line)
        if problem is not None:
            raise EpisodeError(problem)
        return answer

    def end(self) -> None:
        """End the process and everything that it left behind."""
        self._lines.close()
        self._socket.close()
        deadline = time.monotonic() + _END_S
        with contextlib.suppress(ProcessLookupError):
            while True:  # one that is being killed may still start another
                os.kill(-1, signal.SIGKILL)  # all here but the sandbox's first process and this one
                with contextlib.suppress(ChildProcessError):
                    os.waitpid(-1, os.WNOHANG)
                if time.monotonic() > deadline:
                    os._exit(1)  # the sandbox ends with it
                time.sleep(0.001)


def _end() -> None:
    """End the episode with all that it left: processes, and files beside those of the start."""
    global _child
    if _child is None:
        return
    child, _child = _child, None
    child.end()
    for path in _files() - _first_files:
        _remove(path)


def _files() -> set[Path]:
    return {path for folder in _WRITABLE for path in Path(folder).iterdir()}


def _remove(path: Path) -> None:
    if not path.is_dir() or path.is_symlink():
        path.unlink()
        return
    path.chmod(0o700)  # a program may have shut its folder
    for below in path.iterdir():
        _remove(below)
    path.rmdir()


# --- in the child ---------------------------------------------------------------------


def _keep_only(connection: socket.socket) -> None:
    """Close every other connection to the outside that the fork has copied."""
    os.closerange(3, connection.fileno())
    os.closerange(connection.fileno() + 1, 4096)


def _serve(connection: socket.socket, spec: "EnvSpec") -> None:
    episode: Episode | None = None
    with connection.makefile("rb") as requests:
        for line in requests:
            request = json.loads(line)
            what = request.pop("do")
            try:
                if what == "open":
                    episode, answer = Episode(spec, **request), None
                else:
                    answer = getattr(episode, what)(**request)
                reply = json.dumps([answer, None])
            except (Exception, SystemExit) as error:
                traceback.print_exc()
                reply = json.dumps([None, f"{type(error).__name__}: {error}"])
            connection.sendall(reply.encode() + b"\n")


__all__ = ["EpisodeError", "NoSuchEnv", "handle"]
