"""Who speaks for a run that Ray's core has ended.

Where Ray's own process on this machine, the raylet, or the one on the head that knows all others, the
GCS, is gone, Ray's core ends the process of the run: with exit code 1 and past Python, at once or
after a while, with a line of its own or without a word. A small process beside the run says the last
word. It hears that the run has ended, for then its standard input does, and whether the run has said
itself what there is to say, for then something came in before.
"""

import contextlib
import os
import subprocess
import sys
from collections.abc import Sequence
from typing import Self

import ray
from ray._private import ray_constants, worker

_GOES_ON = "the same command goes on after the run's newest checkpoint"
_KILLED = f"it was killed, or the system has no memory left (dmesg says so). Then {_GOES_ON}"
_RAYLET = f"skyrl: Ray's own process on this machine (the raylet) has ended, and the run with it: {_KILLED}"
_GCS = (
    "skyrl: Ray's own process that knows of all others (gcs_server) has ended, and the run with it: "
    f"{_KILLED}"
)
_HEAD = (
    "skyrl: the head of the Ray cluster ({}) does not answer any more, and the run has ended with it: its "
    "Ray was stopped or killed (gcs_server), or the network to it is down. When the cluster is up again, "
    f"{_GOES_ON}"
)

WATCH = """
import os, select, sys

EXITING = 4  # PF_EXITING of linux/sched.h

def run_is_ending():
    try:
        with open(f"/proc/{run}/stat") as file:
            return int(file.read().rpartition(")")[2].split()[6]) & EXITING
    except OSError:
        return True

run = os.getppid()
says = {os.pidfd_open(int(process)): text for process, text in zip(sys.argv[1::2], sys.argv[2::2])}
ends = select.poll()
for one in (0, *says):
    ends.register(one, select.POLLIN)
ended = [number for number, _ in ends.poll()]
if 0 not in ended and not run_is_ending() and not sys.stdin.read():
    print(says[ended[0]], file=sys.stderr)
"""
"""Of a Ray of the run's own, whose processes end with the run too: which is the first to end counts."""

ASK = """
import socket, sys

LONGEST_S = 5.0

def answers(family, address):
    with socket.socket(family) as asked:
        asked.settimeout(LONGEST_S)
        return asked.connect_ex(address) == 0

host, port, head_says, raylet, raylet_says = sys.argv[1:]
if not sys.stdin.read():
    if not answers(socket.AF_INET6 if ":" in host else socket.AF_INET, (host, int(port))):
        print(head_says, file=sys.stderr)
    elif not answers(socket.AF_UNIX, raylet):
        print(raylet_says, file=sys.stderr)
"""
"""Of a cluster, which outlives a run and whose head may be out of sight: they are asked when it ended."""


class Guard:
    """A process beside the run.

    Args:
        script: Its Python.
        words: Its arguments.
        watched: Processes of Ray that it watches.
    """

    def __init__(
        self,
        script: str,
        words: Sequence[str],
        watched: "Sequence[subprocess.Popen[bytes]]" = (),
    ) -> None:
        self._watched = watched
        self._process: subprocess.Popen[bytes] | None = subprocess.Popen(
            [sys.executable, "-I", "-S", "-c", script, *words],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            start_new_session=True,  # Ctrl-C is for the run
        )

    @classmethod
    def of_own(cls) -> Self | None:
        """Over the Ray that this process has started; None if it is not to be seen."""
        started = getattr(getattr(worker, "_global_node", None), "all_processes", {})
        says = {
            ray_constants.PROCESS_TYPE_RAYLET: _RAYLET,
            ray_constants.PROCESS_TYPE_GCS_SERVER: _GCS,
        }
        if not says.keys() <= started.keys() or not hasattr(os, "pidfd_open"):
            return None
        watched = {kind: started[kind][0].process for kind in says}
        words = [word for kind, text in says.items() for word in (str(watched[kind].pid), text)]
        return cls(WATCH, words, list(watched.values()))

    @classmethod
    def of_cluster(cls) -> Self | None:
        """Over the one that this process has joined; None if it is not to be seen."""
        raylet = getattr(getattr(worker, "_global_node", None), "raylet_socket_name", None)
        if raylet is None:
            return None
        head: str = ray.get_runtime_context().gcs_address
        host, _, port = head.rpartition(":")
        return cls(ASK, [host.strip("[]"), port, _HEAD.format(head), raylet, _RAYLET])

    def may_go_first(self) -> bool:
        """Whether leaving this Ray cannot end the run: one of its own, with all its processes alive."""
        return bool(self._watched) and all(process.poll() is None for process in self._watched)

    def close(self) -> None:
        """The run ends by itself, and says what there is to say. More than once is as good as once."""
        process, self._process = self._process, None
        if process is not None:
            with contextlib.suppress(OSError):
                process.communicate(b"goes")
