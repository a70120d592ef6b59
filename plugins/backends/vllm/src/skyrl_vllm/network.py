"""Which addresses are this machine's, and under which of its own another one sees it."""

import contextlib
import ipaddress
import socket
from urllib.parse import urlsplit

LOOPBACK = "127.0.0.1"


def host_of(url: str) -> str:
    """The name or address in ``url``."""
    return urlsplit(url).hostname or ""


def is_here(url: str) -> bool:
    """True if the host of ``url`` is this machine."""
    with contextlib.suppress(OSError):
        return all(_is_own(*found) for found in _addresses(host_of(url)))
    return False


def own_address(host: str, port: int = 80) -> str:
    """The address of this machine that ``host`` sees: its own if that is this machine.

    Raises:
        OSError: No way leads there.
    """
    family, address = _addresses(host)[0]
    with socket.socket(family, socket.SOCK_DGRAM) as probe:  # nothing is sent
        probe.connect((address, port))
        return str(probe.getsockname()[0])


def _addresses(host: str) -> list[tuple[socket.AddressFamily, str]]:
    found = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)
    return [(family, str(address[0])) for family, _, _, _, address in found]


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
