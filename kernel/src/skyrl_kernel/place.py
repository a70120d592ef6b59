"""Where trainer and engine of a run are, in words that transports of weights may need."""

import contextlib
import ipaddress
import os
import socket
from collections.abc import Sequence
from pathlib import Path
from urllib.parse import urlsplit

VISIBLE = "CUDA_VISIBLE_DEVICES"
"""Names the GPUs that a process may use."""
SAME_GPU, GPUS, SAME_MACHINE = "same_gpu", "gpus", "same_machine"
STARTED_HERE = "started_here"
PLACES: dict[str, str] = {
    SAME_GPU: "an engine on the trainer's NVIDIA GPU (trainer.placement.colocate_all=true), and on no other",
    GPUS: "an NVIDIA GPU, or with trainer.placement.colocate_all=false one each for trainer and engine",
    SAME_MACHINE: "an engine on the trainer's machine",
    STARTED_HERE: "an engine that the run starts (no generator.inference_engine.external_server_urls)",
}
"""Needed by transports as capabilities are, and offered by no plugin but the run itself."""
_DRIVER, _DEVICES = Path("/proc/driver/nvidia/gpus"), Path("/dev")


def places(
    urls: Sequence[str], *, colocated: bool, devices: int = 1, gpus: int | None = None
) -> frozenset[str]:
    """Which of `PLACES` a run has.

    Args:
        urls: Addresses of engines that run already; empty if the run starts its own here.
        colocated: Whether trainer and engine share devices.
        devices: That the engines of one process of the trainer compute on. It has one, so of several
            it shares one, and neither memory of a GPU nor a group of GPUs reaches all.
        gpus: Of the run; None: those of this machine.
    """
    if gpus is None:
        gpus = num_gpus()
    if colocated and devices > 1:
        gpus = 0
    found = set() if urls else {STARTED_HERE}
    if all(map(is_here, urls)):
        found.add(SAME_MACHINE)
    if gpus and colocated and not urls:
        found.add(SAME_GPU)
    if gpus > (0 if colocated or urls else 1):
        found.add(GPUS)
    return frozenset(found)


def shares_gpu(urls: Sequence[str], *, colocated: bool) -> bool:
    """Whether an engine that the run starts computes on the trainer's GPUs.

    Args:
        urls: As in `places`.
        colocated: As there.
    """
    return colocated and not urls and num_gpus() > 0


def num_gpus() -> int:
    """NVIDIA GPUs that this process may use; found out without importing anything."""
    if (named := os.environ.get(VISIBLE)) is not None:
        return len([one for one in named.split(",") if one.strip() not in ("", "-1")])
    if _DRIVER.is_dir():
        return len(list(_DRIVER.iterdir()))
    # Containers may hide the driver's folder; Windows' Linux shows all its GPUs as one device.
    files = [one for one in _DEVICES.glob("nvidia*") if one.name.removeprefix("nvidia").isdigit()]
    return len(files) or int((_DEVICES / "dxg").exists())


def host_of(url: str) -> str:
    """The name or address in ``url``."""
    return urlsplit(url).hostname or ""


def is_loopback(url: str) -> bool:
    """True if every machine takes ``url`` for its own."""
    host = host_of(url)
    with contextlib.suppress(ValueError):
        return ipaddress.ip_address(host).is_loopback
    return host == "localhost"


def is_here(url: str) -> bool:
    """True if the host of ``url`` is this machine."""
    with contextlib.suppress(OSError):
        found = socket.getaddrinfo(host_of(url), None, type=socket.SOCK_STREAM)
        return all(_is_own(family, str(address[0])) for family, _, _, _, address in found)
    return False


def _is_own(family: socket.AddressFamily, address: str) -> bool:
    """Only a machine's own addresses can be bound."""
    if ipaddress.ip_address(address.partition("%")[0]).is_loopback:
        return True
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        try:
            probe.bind((address, 0))
        except OSError:
            return False
    return True
