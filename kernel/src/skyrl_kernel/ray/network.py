"""What a machine is called, and which network card it talks to the others with.

gloo binds to what the host's name resolves to, which in many containers is loopback: two ranks on
two nodes then wait for each other until the deadline. Ray knows the address at which the others
reach this node; the card that has it is what gloo is to be told, in ``GLOO_SOCKET_IFNAME``.
"""

import fcntl
import os
import platform
import socket
import struct
import sys
from collections.abc import MutableMapping

_SIOCGIFADDR = 0x8915
"""Linux's request for the address of a network card, see netdevice(7)."""
VARIABLE = "GLOO_SOCKET_IFNAME"


def where(address: str) -> str:
    """What messages call this machine.

    Args:
        address: At which the others reach it.
    """
    name = platform.node()
    return name if address.startswith("127.") else f"{name} ({address})"


def device_of(address: str) -> str | None:
    """Name of the network card with this IPv4 address, such as ``eth0``; None if none is known.

    Only Linux can be asked; elsewhere gloo's own choice stands.
    """
    if sys.platform != "linux":
        return None
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as asking:
        for _, name in socket.if_nameindex():
            request = struct.pack("256s", name.encode()[:15])
            try:
                answer = fcntl.ioctl(asking.fileno(), _SIOCGIFADDR, request)
            except OSError:  # a card without an IPv4 address
                continue
            if socket.inet_ntoa(answer[20:24]) == address:
                return name
    return None


def tell_gloo(address: str, environ: MutableMapping[str, str] = os.environ) -> None:
    """Let gloo use the card with this node's address, unless the user has named one."""
    device = device_of(address)
    if device is not None:
        environ.setdefault(VARIABLE, device)
