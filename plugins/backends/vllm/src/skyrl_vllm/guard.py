"""Runs a command, and ends it and all its children when standard input closes.

``python -m skyrl_vllm.guard COMMAND…``: the starter keeps the other end of the
pipe, which the system closes for it, also after ``kill -9``. vLLM alone would
go on: its server does not watch its parent, and its engine processes outlive a
server that was killed.
"""

import contextlib
import ctypes
import os
import signal
import subprocess
import sys
import threading
import time

PATIENCE_S = 10.0
"""Between asking the server to end and ending it."""
GRACE_S = 5.0
"""For its engine processes, after the server has ended."""
GROUP_LINE = "skyrl_vllm.guard: started process group "
"""Begins the first line of the output; the number follows."""
_PR_SET_PDEATHSIG = 1


def main(command: list[str]) -> int:
    """Run ``command``; returns its exit code as a shell has it."""
    child = subprocess.Popen(
        command, stdin=subprocess.DEVNULL, preexec_fn=_die_with_parent, process_group=0
    )
    print(f"{GROUP_LINE}{child.pid}", flush=True)
    threading.Thread(target=_watch, args=(child,), daemon=True).start()
    code = child.wait()
    # Engine processes give back their shared memory now; those that a killed server left do not end.
    deadline = time.monotonic() + GRACE_S
    while _is_there(child.pid) and time.monotonic() < deadline:
        time.sleep(0.05)
    end_group(child.pid)
    return code if code >= 0 else 128 - code


def end_group(group: int) -> None:
    """End every process of a group, now."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(group, signal.SIGKILL)


def _is_there(group: int) -> bool:
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return False
    return True


def _watch(child: "subprocess.Popen[bytes]") -> None:
    while os.read(sys.stdin.fileno(), 65536):
        pass
    with contextlib.suppress(ProcessLookupError):
        os.kill(child.pid, signal.SIGTERM)  # it ends its engine processes itself, in good order
    deadline = time.monotonic() + PATIENCE_S
    while child.poll() is None and time.monotonic() < deadline:
        time.sleep(0.05)
    end_group(child.pid)


def _die_with_parent() -> None:
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def _outlive(number: int, frame: object) -> None:
    """A handler, as an ignored signal would be ignored by the command too."""


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, _outlive)  # it ends last
    signal.signal(signal.SIGINT, _outlive)  # Ctrl-C is the run's to answer
    sys.exit(main(sys.argv[1:]))
