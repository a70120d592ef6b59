"""Whether a sandbox can be had here, asked once before anything depends on it."""

import functools
import shutil
import sys

from skyrl_kernel.errors import TrajectoryError, UsageError

_INSTALL = (
    "install bubblewrap: apt-get install bubblewrap (Debian, Ubuntu), dnf install bubblewrap "
    "(Fedora, RHEL), apk add bubblewrap util-linux (Alpine)"
)


@functools.cache
def require_sandbox() -> str:
    """Path of a bubblewrap that works here; the answer is kept for the process.

    It does not only look for the command but runs a program, since many containers
    forbid what bubblewrap needs.

    Raises:
        UsageError: Programs cannot be run here safely; says why, and what to install
            or to allow.
    """
    from skyrl_sandbox.sandbox import Sandbox

    bwrap = find_bwrap()
    try:
        result = Sandbox(bwrap=bwrap).run(["true"])
    except (TrajectoryError, ValueError) as error:
        if "Unknown option" in str(error):
            raise _refusal(f"{error}", f"{_INSTALL}; 0.8 or newer") from error
        raise _refusal(
            f"{error}",
            "let this user make namespaces (sysctl kernel.unprivileged_userns_clone=1, "
            "kernel.apparmor_restrict_unprivileged_userns=0), or give the container "
            "CAP_SYS_ADMIN and a seccomp profile that allows mount and unshare",
        ) from error
    if not result.is_fine:
        raise _refusal(
            f"a program that does nothing ended with exit code {result.exit_code} and said: "
            f"{result.stderr.strip()}",
            "install util-linux, which has prlimit and setpriv",
        )
    return bwrap


def find_bwrap() -> str:
    """Path of bubblewrap.

    Raises:
        UsageError: It is not installed, or this system is not Linux.
    """
    if sys.platform != "linux":
        raise _refusal(
            f"bubblewrap exists on Linux only, and this is {sys.platform}",
            "run on Linux, or in a virtual machine or container with Linux",
        )
    bwrap = shutil.which("bwrap")
    if bwrap is None:
        raise _refusal("no command bwrap is on the PATH", _INSTALL)
    return bwrap


def _refusal(found: str, remedy: str) -> UsageError:
    return UsageError(
        f"code that a model wrote runs only in a sandbox, and there is none here: {found}. "
        f"To have one, {remedy}"
    )
