"""Who speaks for a run that Ray's core has ended.

Where Ray's own process on this machine, the raylet, ends, Ray's core may end the process of the run
with it: at once, with exit code 1, without a word and past Python. A small process beside the run
says the word, unless the run was ending before the raylet did, as after a kill.
"""

import contextlib
import os
import subprocess
import sys

from ray._private import ray_constants, worker

_SAYS = (
    "skyrl: Ray's own process on this machine (the raylet) has ended, and the run with it: it was "
    "killed, or the system has no memory left (dmesg says so). The same command goes on after the "
    "run's newest checkpoint"
)
_WATCH = """
import os, select, sys

EXITING = 4  # PF_EXITING of linux/sched.h

def run_is_ending():
    try:
        with open(f"/proc/{run}/stat") as file:
            return int(file.read().rpartition(")")[2].split()[6]) & EXITING
    except OSError:
        return True

run, raylet = os.getppid(), os.pidfd_open(int(sys.argv[1]))
ends = select.poll()
ends.register(raylet, select.POLLIN)
ends.register(0, select.POLLIN)
if [number for number, _ in ends.poll()] == [raylet] and not run_is_ending() and not sys.stdin.read():
    print(sys.argv[2], file=sys.stderr)
"""


class Guard:
    """Watches over a Ray that this process has started; where that is not to be seen, over none."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[bytes] | None = None
        self._raylet = _raylet()
        if self._raylet is None or not hasattr(os, "pidfd_open"):
            return
        self._process = subprocess.Popen(
            [sys.executable, "-I", "-S", "-c", _WATCH, str(self._raylet.pid), _SAYS],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            start_new_session=True,  # Ctrl-C is for the run
        )

    def raylet_lives(self) -> bool:
        """False once it has ended."""
        return self._raylet is not None and self._raylet.poll() is None

    def close(self) -> None:
        """The run ends by itself, and says what there is to say. More than once is as good as once."""
        process, self._process = self._process, None
        if process is not None:
            with contextlib.suppress(OSError):
                process.communicate(b"goes")


def _raylet() -> "subprocess.Popen[bytes] | None":
    """Its process; None if Ray does not say."""
    processes = getattr(getattr(worker, "_global_node", None), "all_processes", {})
    found = processes.get(ray_constants.PROCESS_TYPE_RAYLET, ())
    return found[0].process if found else None
