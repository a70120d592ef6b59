"""A gloo group of the trainer and every worker of every server, beside whatever groups they have.

Rank 0 is the trainer. Both halves of the transport use this.
"""

import socket
from datetime import timedelta
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch
    from torch._C._distributed_c10d import TCPStore

BUCKET = 32 << 20
"""Bytes of one broadcast, and of the trainer's buffer."""
CHECKSUM_BYTES = 8
"""Of xxh3, broadcast after the tensors."""


def listen(host: str, deadline_s: float) -> "tuple[TCPStore, int]":
    """Where the others meet, on a free port of one address only; and the port."""
    from torch._C._distributed_c10d import TCPStore

    held = socket.create_server((host, 0))
    port = held.getsockname()[1]
    store = TCPStore(
        host,
        port,
        is_master=True,
        timeout=timedelta(seconds=deadline_s),
        wait_for_workers=False,
        master_listen_fd=held.detach(),
    )
    return store, port


def connect(host: str, port: int, deadline_s: float) -> "TCPStore":
    """The store of somebody else.

    Raises:
        RuntimeError: Nobody answers within ``deadline_s``.
    """
    from torch._C._distributed_c10d import TCPStore

    timeout = timedelta(seconds=deadline_s)
    return TCPStore(host, port, is_master=False, timeout=timeout, wait_for_workers=False)


class Group:
    """Made when all have come.

    Args:
        store: Where they meet.
        rank: Of this process.
        size: How many they are.
        host: Address of this process, as the others reach it.
        deadline_s: Longest wait of each call, this one included.

    Raises:
        RuntimeError: Not all came in time.
    """

    def __init__(
        self, store: "TCPStore", rank: int, size: int, *, host: str, deadline_s: float
    ) -> None:
        import torch.distributed as dist

        gloo: Any = dist.ProcessGroupGloo
        options = gloo._Options()
        options._devices = [gloo.create_device(hostname=host)]
        options._timeout = timedelta(seconds=deadline_s)
        self._store = store
        self._group = gloo(store, rank, size, options)

    def broadcast(self, octets: "torch.Tensor") -> None:
        """Send ``octets`` uint8 if this is rank 0, receive them otherwise.

        Raises:
            RuntimeError: One of them is gone, or was too late; the group is of no more use.
        """
        self._group.broadcast(octets, 0).wait()
