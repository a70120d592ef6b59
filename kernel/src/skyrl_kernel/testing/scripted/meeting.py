"""A process group for the fakes: ranks add numbers up, over sockets and without torch."""

import os
import socket
import struct
import time

_DEADLINE_S = 30.0
"""A rank that is not there by then is not coming."""


class Meeting:
    """The ranks that torchrun's environment variables speak of; one process alone without them.

    The first rank hears everybody's number, in the order of ranks so that sums repeat, and tells
    everybody the sum.
    """

    def __init__(self) -> None:
        self.rank = int(os.environ.get("RANK", "0"))
        self.size = int(os.environ.get("WORLD_SIZE", "1"))
        self._others: list[socket.socket] = []
        if self.size == 1:
            return
        where = (os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"]))
        if self.rank:
            self._others = [_connected(where)]
            self._others[0].sendall(struct.pack("q", self.rank))
            return
        with socket.create_server(where) as door:
            door.settimeout(_DEADLINE_S)
            guests = [door.accept()[0] for _ in range(self.size - 1)]
        for guest in guests:
            guest.settimeout(_DEADLINE_S)
        self._others = sorted(guests, key=lambda guest: int(struct.unpack("q", _read(guest))[0]))

    def sum(self, number: float) -> float:
        """The sum of all ranks' numbers; all must call it."""
        if self.size == 1:
            return number
        if self.rank:
            self._others[0].sendall(struct.pack("d", number))
            return float(struct.unpack("d", _read(self._others[0]))[0])
        for other in self._others:
            number += struct.unpack("d", _read(other))[0]
        for other in self._others:
            other.sendall(struct.pack("d", number))
        return number

    def close(self) -> None:
        """Leave."""
        for other in self._others:
            other.close()


def _connected(where: tuple[str, int]) -> socket.socket:
    until = time.monotonic() + _DEADLINE_S
    while True:
        try:
            return socket.create_connection(where, timeout=_DEADLINE_S)
        except ConnectionRefusedError:  # the first rank is not that far yet
            if time.monotonic() > until:
                raise
            time.sleep(0.02)


def _read(one: socket.socket) -> bytes:
    found = b""
    while len(found) < 8:
        part = one.recv(8 - len(found))
        if not part:
            raise ConnectionError("a rank has left")
        found += part
    return found
