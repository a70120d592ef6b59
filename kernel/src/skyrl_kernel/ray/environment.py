"""What Ray reads from the environment, some of it when it is imported."""

import os
import secrets

from skyrl_kernel.config.compat import table
from skyrl_kernel.masking import is_secret_key

ADDRESS = "RAY_ADDRESS"

_OWN = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_AUTH_MODE": "token",
    # Only its name is about other systems: without clusters, Ray keeps to the loopback interface.
    "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
    # Under `uv run`, Ray would copy the working folder, checkpoints and all, for processes that
    # have this machine's environment anyway.
    "RAY_ENABLE_UV_RUN_RUNTIME_ENV": "0",
    # Its GCS is on this machine: one that is gone does not come back, and a minute is waited in vain.
    "RAY_gcs_rpc_server_reconnect_timeout_s": "10",
}


def address() -> str | None:
    """The cluster that ``RAY_ADDRESS`` names; None if the run starts a Ray of its own."""
    named = os.environ.get(ADDRESS, "")
    return None if named in ("", "local") else named


_EXPORTS = {
    "SKYRL_PYTHONPATH_EXPORT": "PYTHONPATH",
    "SKYRL_LD_LIBRARY_PATH_EXPORT": "LD_LIBRARY_PATH",
}
_OF_LIBRARIES = ("NCCL_", "GLOO_", "VLLM_")
_OF_HUGGING_FACE = {"HF_HOME", "HF_HUB_OFFLINE"}
_OF_ONE_MACHINE = {"VLLM_HOST_IP", "VLLM_HOST_PORT", "VLLM_NIXL_SIDE_CHANNEL_HOST"}
"""vLLM does not hand them to its own workers either."""


def exported() -> dict[str, str]:
    """Variables of this process that those of a cluster get too.

    Those of this project that are read; of NCCL, gloo and vLLM; the cache of Hugging Face; and paths,
    if SkyRL's switches ask for it. No secret: Ray shows to everybody on the cluster what it is given.
    A Ray of the run's own hands all variables on by itself.
    """
    switched = {
        name
        for switch, name in _EXPORTS.items()
        if os.environ.get(switch, "").lower() in ("1", "true")
    }
    read = {row.name for row in table().variables.values() if row.status == "read"}
    named = {name for name in read if name.startswith("SKYRL_")} | _OF_HUGGING_FACE | switched
    return {
        name: value
        for name, value in os.environ.items()
        if (name in named or name.startswith(_OF_LIBRARIES))
        and name not in _OF_ONE_MACHINE
        and not is_secret_key(name)
    }


def prepare() -> None:
    """Before Ray is imported: a Ray of the run's own asks for a token that nobody else has.

    A cluster is entered with the token that its user has.
    """
    if address() is None:
        os.environ.update(_OWN)
        os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))
