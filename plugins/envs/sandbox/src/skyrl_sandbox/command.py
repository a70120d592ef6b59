"""The command line of bubblewrap: what a program sees, and as whom it runs.

Two ways lead to a program that is nobody:

- As an ordinary user, bubblewrap makes a user namespace, in which the program has a
  user id of its own and no other can be had.
- As root it needs none: it lays out the files as root, so that an interpreter below
  a private home folder can be used, and ``setpriv`` then becomes a user that nobody else
  is. It must be a user other than root, since the kernel exempts root from the
  limit on processes, and one that no other sandbox has at the time, since that limit
  counts per user.
"""

import itertools
import math
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from skyrl_sandbox.limits import Limits

PATH = "/usr/local/bin:/usr/bin:/bin"
"""Where the tools are, outside and inside."""
PROGRAM = "/program/main.py"
"""Where a Python program lies inside."""
FOLDERS = ("/tmp", "/dev/shm")
"""Where a program may write; each is memory of a fixed size."""

_ENVIRONMENT = {
    "PATH": PATH,
    "HOME": "/tmp",
    "USER": "sandbox",
    "LANG": "C.UTF-8",
    "PYTHONHASHSEED": "0",  # the same program prints the same set in the same order
    "PYTHONDONTWRITEBYTECODE": "1",
    "OMP_NUM_THREADS": "1",  # a thread per core would already use up the processes
    "OPENBLAS_NUM_THREADS": "1",
}
_SYSTEM = ("/bin", "/sbin", "/lib", "/lib32", "/lib64", "/libx32")
"""Links into /usr on most systems, folders on others."""
_NAMESPACES = ("pid", "net", "ipc", "uts", "cgroup")
_NOBODY = 65534
_numbers = itertools.count()


def bwrap_command(
    command: Sequence[str],
    limits: Limits,
    *,
    bwrap: str,
    readable: Iterable[Path] = (),
    environment: Mapping[str, str] | None = None,
    program_fd: int | None = None,
    seccomp_fd: int,
    status_fd: int,
    is_root: bool | None = None,
) -> list[str]:
    """What to execute so that ``command`` runs inside.

    Args:
        command: With an absolute path, or a name on `PATH`.
        limits: Those of them that the kernel enforces by itself.
        bwrap: Path of bubblewrap.
        readable: Folders and files that appear inside where they are outside.
        environment: Variables beside the few that are always set.
        program_fd: Open file with the Python program, which appears as `PROGRAM`.
        seccomp_fd: Open file with the filter of system calls.
        status_fd: Where bubblewrap tells process id and exit code, as JSON.
        is_root: Whether root will execute it; default: whether this process is root.
    """
    is_root = os.geteuid() == 0 if is_root is None else is_root
    size = str(limits.files_mb * 2**20)
    words = [bwrap, "--die-with-parent", "--new-session", "--cap-drop", "ALL"]
    for namespace in _NAMESPACES:
        words += [f"--unshare-{namespace}"]
    if not is_root:
        words += [
            "--unshare-user",
            "--disable-userns",
            "--uid",
            str(_NOBODY),
            "--gid",
            str(_NOBODY),
        ]
    else:
        words += ["--cap-add", "CAP_SETUID", "--cap-add", "CAP_SETGID"]
    words += ["--hostname", "sandbox", "--clearenv"]
    for name, value in {**_ENVIRONMENT, **(environment or {})}.items():
        words += ["--setenv", name, value]
    words += ["--proc", "/proc", "--dev", "/dev"]
    # As a file of another file system it cannot be opened: mapped, it would be memory that is
    # shared and that no limit counts.
    words += ["--ro-bind", "/dev/zero", "/dev/zero"]
    for folder in FOLDERS:
        words += ["--perms", "1777", "--size", size, "--tmpfs", folder]
    words += _mounts(readable)  # after /tmp, which would hide what is below it
    if program_fd is not None:
        words += ["--perms", "0755", "--dir", str(Path(PROGRAM).parent)]
        words += ["--perms", "0444", "--ro-bind-data", str(program_fd), PROGRAM]
    # bubblewrap's own file systems are writable memory without a bound unless this is said.
    words += ["--remount-ro", "/dev", "--remount-ro", "/", "--chdir", "/tmp"]
    words += ["--seccomp", str(seccomp_fd), "--json-status-fd", str(status_fd), "--"]
    return [*words, *_prlimit(limits, is_root), *(_setpriv() if is_root else []), *command]


def _mounts(readable: Iterable[Path]) -> list[str]:
    words = ["--ro-bind", "/usr", "/usr"]
    for name in _SYSTEM:
        if os.path.islink(name):
            words += ["--symlink", os.readlink(name), name]
        elif os.path.isdir(name):
            words += ["--ro-bind", name, name]
    made: set[Path] = set()
    libraries = Path("/etc/ld.so.cache")  # where the loader finds them
    for path in (*([libraries] if libraries.exists() else []), *sorted(set(readable))):
        if path.is_relative_to("/usr"):
            continue
        # As bubblewrap makes them they would be private to root where the host's are.
        for parent in reversed(path.parents):
            if parent not in made and parent != Path("/"):
                words += ["--perms", "0755", "--dir", str(parent)]
                made.add(parent)
        words += ["--ro-bind", str(path), str(path)]
        made.add(path)
    return words


def _prlimit(limits: Limits, is_root: bool) -> list[str]:
    words = ["prlimit", "--core=0", f"--nofile={limits.open_files}"]
    words += [f"--as={limits.memory_mb * 2**20}", f"--fsize={limits.files_mb * 2**20}"]
    # In a user namespace bubblewrap's first process is of the same user, and counted.
    words += [f"--nproc={limits.processes if is_root else limits.processes + 1}"]
    if limits.cpu_s is not None:
        seconds = math.ceil(limits.cpu_s)
        words += [f"--cpu={seconds}:{seconds + 1}"]
    return [*words, "--"]


def _setpriv() -> list[str]:
    user = str(_free_user())
    return [
        *("setpriv", "--reuid", user, "--regid", user, "--clear-groups"),
        *("--inh-caps=-all", "--bounding-set=-all", "--no-new-privs", "--"),
    ]


def _free_user() -> int:
    """A user id that no account and no other sandbox of the moment has.

    Example:
        >>> _free_user() != _free_user()
        True
    """
    # The ids that exist here: 2**32 on a machine, often 65536 in a container.
    _, _, count = Path("/proc/self/uid_map").read_text().splitlines()[0].split()
    span = int(count) // 4
    return span + (os.getpid() * 256 + next(_numbers) % 256) % span
