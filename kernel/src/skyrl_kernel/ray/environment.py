"""What Ray reads from the environment, some of it when it is imported."""

import os
import secrets

ADDRESS = "RAY_ADDRESS"

_OWN = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_AUTH_MODE": "token",
    # Only its name is about other systems: without clusters, Ray keeps to the loopback interface.
    "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
    # Under `uv run`, Ray would copy the working folder, checkpoints and all, for processes that
    # have this machine's environment anyway.
    "RAY_ENABLE_UV_RUN_RUNTIME_ENV": "0",
}


def address() -> str | None:
    """The cluster that ``RAY_ADDRESS`` names; None if the run starts a Ray of its own."""
    named = os.environ.get(ADDRESS, "")
    return None if named in ("", "local") else named


_EXPORTS = {
    "SKYRL_PYTHONPATH_EXPORT": "PYTHONPATH",
    "SKYRL_LD_LIBRARY_PATH_EXPORT": "LD_LIBRARY_PATH",
}


def exported() -> dict[str, str]:
    """Variables of this process that those of a cluster get too, as SkyRL's switches ask for it.

    A Ray of the run's own hands all of them on by itself.
    """
    return {
        name: os.environ[name]
        for switch, name in _EXPORTS.items()
        if os.environ.get(switch, "").lower() in ("1", "true") and name in os.environ
    }


def prepare() -> None:
    """Before Ray is imported: a Ray of the run's own asks for a token that nobody else has.

    A cluster is entered with the token that its user has.
    """
    if address() is None:
        os.environ.update(_OWN)
        os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))
