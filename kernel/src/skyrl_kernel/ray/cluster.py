"""A Ray to run on: one of the run's own, which ends with it, or a cluster, which goes on.

The run's own listens on this machine alone, asks for a token that nobody else has, and keeps
its files in a folder of its own under /tmp: the path of a socket has at most 107 bytes, and
Ray needs 68 of them. Ray ties its processes to the one that started them, so nothing is left
of it after a kill -9 but that folder, which the next run removes.
"""

import fcntl
import os
import shutil
import signal
import socket
import stat
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import ray

from skyrl_kernel.errors import CapabilityError, RunError
from skyrl_kernel.logs import get_logger
from skyrl_kernel.ray.environment import ADDRESS, address, exported
from skyrl_kernel.ray.guard import Guard
from skyrl_kernel.ray.quiet import loud, quieten, warnings_of_ray
from skyrl_kernel.ray.waits import waiting_for

_PREFIX = "skyrl-ray-"
_HELD = "held"
"""File in the folder of a running Ray: locked for as long as its owner lives."""
_MOST_BYTES = 16
"""Of the path of the folder for temporary files; with a longer one, sockets would not fit."""
_YOUNG_S = 60.0
"""A folder without an owner may only just be made."""
_WRONG_TOKEN = "InvalidAuthToken"
"""In what Ray warns of, again and again, before it says that it failed to connect."""
_ANSWER_S = 10.0
"""Until something listens at a cluster's address; Ray itself would try for minutes."""

log = get_logger(__name__)


class Cluster:
    """Ray, joined.

    Args:
        num_cpus: Processors of a Ray of the run's own.

    Raises:
        CapabilityError: There is no such cluster, or it does not let this run in.
        RunError: Ray does not start.
    """

    def __init__(self, num_cpus: int) -> None:
        self._folder: _Folder | None = None
        self._guard: Guard | None = None
        self.is_own = False
        """True if it ends with the run, so that it has no more than it has now."""
        if ray.is_initialized():  # by whoever called this run
            self._joined = False
            return
        self._joined = True
        self._printed = quieten()
        at_sigterm = signal.getsignal(signal.SIGTERM)
        try:
            self._join_or_start(num_cpus)
        finally:
            _at_sigterm(at_sigterm)

    def _join_or_start(self, num_cpus: int) -> None:
        if (named := address()) is not None:
            _join(named)
            self._guard = Guard.of_cluster()
            return
        self.is_own = True
        self._folder = _Folder()
        try:
            with waiting_for("Ray to start"), warnings_of_ray():
                ray.init(
                    num_cpus=num_cpus,
                    include_dashboard=False,
                    log_to_driver=False,
                    configure_logging=False,
                    _temp_dir=str(self._folder.path),
                )
        except Exception as error:  # Ray raises many types, none of which says more
            self.close()
            raise RunError(
                f"Ray does not start on this machine: {error}\nIf it has much else to do, the same command "
                "may start later"
            ) from error
        self._guard = Guard.of_own()

    @property
    def logs(self) -> Path | None:
        """What the processes of a Ray of the run's own write; None of another."""
        return None if self._folder is None else self._folder.path / "session_latest" / "logs"

    def close(self) -> None:
        """Leave it; end it if it was started here."""
        if self._guard is not None and self._guard.may_go_first():
            self._guard.close()
        if self._joined:
            ray.shutdown()  # without Ray's own processes, this one may end here
            loud(self._printed)
        if self._guard is not None:
            self._guard.close()
        if self._folder is not None:
            self._folder.remove()


def _join(named: str) -> None:
    listens = _look_for(named)
    warnings: list[str] = []
    handed_on = exported()
    try:
        with waiting_for(f"the Ray cluster {named} to let this run in"), warnings_of_ray(warnings):
            ray.init(
                named,
                log_to_driver=False,
                configure_logging=False,
                runtime_env={"env_vars": handed_on} if handed_on else None,
            )
    except Exception as error:  # a ConnectionError, a RuntimeError or one of Ray's own
        if any(_WRONG_TOKEN in line for line in (str(error), *warnings)):
            raise CapabilityError(
                f"the Ray cluster {ADDRESS}={named} does not accept the token of this machine, or it has "
                "none: give RAY_AUTH_TOKEN_PATH or RAY_AUTH_TOKEN the cluster's, and say RAY_AUTH_MODE=token"
            ) from error
        raise CapabilityError(
            f"the Ray cluster {ADDRESS}={named} cannot be joined: {error}. {listens}Look whether it runs "
            f"(ray status), with the same Ray ({ray.__version__}) and Python, and whether this machine "
            f"has its token (RAY_AUTH_TOKEN_PATH); without {ADDRESS} the run starts a Ray of its own"
        ) from error
    log.info("variables handed on", names=sorted(handed_on))


def _look_for(named: str) -> str:
    """Whether something listens at ``HOST:PORT``, as a sentence; empty for ``auto`` and its like.

    Raises:
        CapabilityError: Nothing does, or it is no address of a cluster's node.
    """
    if "://" in named:
        raise CapabilityError(
            f"{ADDRESS}={named} is for clients outside a cluster; a run is on a node of it: give "
            "HOST:PORT as 'ray start --address' takes it, or auto on such a node"
        )
    host, _, port = named.rpartition(":")
    if not host or not port.isdecimal():
        return ""
    deadline = time.monotonic() + _ANSWER_S
    while True:
        try:
            left_s = max(deadline - time.monotonic(), 0.1)
            socket.create_connection((host.strip("[]"), int(port)), timeout=left_s).close()
            return "Something listens there, so it is its version or the token. "
        except (OSError, OverflowError) as error:
            if time.monotonic() > deadline:
                raise CapabilityError(
                    f"nothing listens at {ADDRESS}={named}, asked for {_ANSWER_S:g} s: {error}. Does 'ray "
                    "start --head' run there, with this port, and does this machine reach it? Without "
                    f"{ADDRESS} the run starts a Ray of its own"
                ) from error
            time.sleep(0.5)


def _at_sigterm(do: Any) -> None:
    """What was done before Ray came, which first prints the stack of its own code."""
    if threading.current_thread() is threading.main_thread():  # Python refuses others
        signal.signal(signal.SIGTERM, do)


class _Folder:
    """A folder for a Ray's files that is removed with it, or else by the next run."""

    def __init__(self) -> None:
        root = Path(tempfile.gettempdir())
        if len(os.fsencode(root)) > _MOST_BYTES:
            root = Path("/tmp")
        _sweep(root)
        self.path = Path(tempfile.mkdtemp(prefix=_PREFIX, dir=root))
        self._lock = (self.path / _HELD).open("w")
        fcntl.flock(self._lock, fcntl.LOCK_EX)

    def remove(self) -> None:
        shutil.rmtree(self.path, ignore_errors=True)
        self._lock.close()


def _sweep(root: Path) -> None:
    """Remove the folders of this user's runs that were killed."""
    for folder in root.glob(f"{_PREFIX}*"):
        try:
            status = folder.lstat()  # what others link to in a shared folder is not ours
            is_ours = stat.S_ISDIR(status.st_mode) and status.st_uid == os.getuid()
            if not is_ours or time.time() - status.st_mtime < _YOUNG_S:
                continue
            with (folder / _HELD).open("w") as lock:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(folder, ignore_errors=True)
        except OSError:  # it is held, or just being removed
            continue
