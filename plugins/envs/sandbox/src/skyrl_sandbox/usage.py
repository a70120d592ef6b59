"""What the processes of one sandbox use together, read from outside.

Limits of the kernel count per process, and a cgroup that would count them together is
only there for root on some machines. ``/proc`` is there for everybody.
"""

import os
from dataclasses import dataclass
from pathlib import Path

from skyrl_sandbox.command import FOLDERS
from skyrl_sandbox.limits import Limit, Limits

_TICKS = os.sysconf("SC_CLK_TCK")
_SOCKET_KB = 208
"""Of the kernel's memory that a socket may hold, as systems are set."""


@dataclass(slots=True)
class Usage:
    """Watches the processes below one.

    Args:
        root: Process id of the sandbox's first process.
        limits: What they may use.
    """

    root: int
    limits: Limits

    def exceeded(self) -> Limit | None:
        """The limit that they exceed together, if any."""
        processes = self._processes()
        if self.limits.cpu_s is not None and _cpu_s(processes) > self.limits.cpu_s:
            return Limit.CPU
        # Quick and too high where processes share pages; exact, and slower, only if it matters.
        left_kb = self.limits.memory_mb * 1024 - self._sockets_kb()
        if _memory_kb(processes, "status") > left_kb and (
            _memory_kb(processes, "smaps_rollup") > left_kb
        ):
            return Limit.MEMORY
        return Limit.FILES if self._num_files() > self.limits.num_files else None

    def _processes(self) -> list[str]:
        found, left = [], [str(self.root)]
        while left:
            process = left.pop()
            found.append(process)
            try:
                for thread in os.listdir(f"/proc/{process}/task"):
                    left += _read(f"/proc/{process}/task/{thread}/children").split()
            except OSError:  # it has just ended
                continue
        return found

    def _sockets_kb(self) -> int:
        """Of those too that nobody has open: connections that wait to be accepted keep what was sent."""
        sockets = _counts(f"/proc/{self.root}/net/sockstat")
        queued = 0
        # TCP's hold more than others. Those of each family are counted in a file of their own.
        for family, in_use in (
            ("tcp", sockets.get("TCP", 0)),
            ("tcp6", _counts(f"/proc/{self.root}/net/sockstat6").get("TCP6", 0)),
        ):
            for line in _read(f"/proc/{self.root}/net/{family}").splitlines()[1:] if in_use else ():
                sent, _, received = line.split()[4].partition(":")
                queued += int(sent, 16) + int(received, 16)
        return sockets.get("sockets", 0) * _SOCKET_KB + queued // 1024

    def _num_files(self) -> int:
        most = 0
        for folder in FOLDERS:
            try:
                inside = os.open(f"/proc/{self.root}/root{folder}", os.O_PATH)
            except OSError:
                continue
            # While bubblewrap is at work the path means one file system and then another, so
            # what is counted must be what was looked at.
            try:
                if os.fstat(inside).st_dev == os.stat(folder).st_dev:
                    continue  # this is the host's
                found = os.fstatvfs(inside)
            except OSError:
                continue
            finally:
                os.close(inside)
            most = max(most, found.f_files - found.f_ffree)
        return most


def _read(path: str) -> str:
    try:
        return Path(path).read_text()
    except OSError:
        return ""


def _counts(path: str) -> dict[str, int]:
    """The first number of every line: ``TCP: inuse 3 orphan 0 …`` is 3 of TCP."""
    lines = (line.split() for line in _read(path).splitlines())
    return {words[0].rstrip(":"): int(words[2]) for words in lines}


def _cpu_s(processes: list[str]) -> float:
    """Seconds of processor time, with that of children that were waited for."""
    total = 0
    for process in processes:
        fields = _read(f"/proc/{process}/stat").rpartition(")")[2].split()
        total += sum(int(field) for field in fields[11:15])
    return total / _TICKS


def _memory_kb(processes: list[str], file: str) -> int:
    """KiB of memory that is theirs: not the pages of files, such as libraries."""
    keys = ("RssAnon:", "RssShmem:") if file == "status" else ("Pss_Anon:", "Pss_Shmem:")
    total = 0
    for process in processes:
        for line in _read(f"/proc/{process}/{file}").splitlines():
            if line.startswith(keys):
                total += int(line.split()[1])
    return total
