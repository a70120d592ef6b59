"""Under which of its addresses another machine sees this one."""

import socket

LOOPBACK = "127.0.0.1"


def own_address(host: str, port: int = 80) -> str:
    """The address of this machine that ``host`` sees: its own if that is this machine.

    Raises:
        OSError: No way leads there.
    """
    found = socket.getaddrinfo(host, port, type=socket.SOCK_DGRAM)
    family, _, _, _, address = found[0]
    with socket.socket(family, socket.SOCK_DGRAM) as probe:  # nothing is sent
        probe.connect(address)
        return str(probe.getsockname()[0])
