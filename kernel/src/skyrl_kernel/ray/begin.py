"""What each process of a run does first."""

from pathlib import Path

import ray

from skyrl_kernel.ray.logs import write_to
from skyrl_kernel.ray.network import tell_gloo, where


def begin(name: str, folder: Path | None) -> str:
    """Log into the run's folder, if there is one, and prepare to meet the others.

    Args:
        name: Of this process, such as ``trainer rank 0``.
        folder: See `skyrl_kernel.ray.logs.write_to`.

    Returns:
        What messages call this machine.
    """
    address: str = ray.util.get_node_ip_address()
    machine = where(address)
    if folder is not None:
        write_to(folder, name, machine)
    tell_gloo(address)
    return machine
