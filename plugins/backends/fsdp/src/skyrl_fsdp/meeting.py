"""Where ranks meet: at a store that the first of them keeps for all, on the address that all were told.

torch's own store listens on every address of the machine and answers whoever calls: on a laptop,
others in the same network. This one listens on ``MASTER_ADDR`` alone.
"""

import errno
import ipaddress
import os
import socket
from datetime import timedelta

import torch.distributed as dist
from torch._C._distributed_c10d import PrefixStore, TCPStore


def meet(backend: str, timeout: timedelta) -> None:
    """Make the process group of the ranks that torchrun's variables speak of.

    Args:
        backend: Of torch.distributed.
        timeout: Longest wait for another rank, now and in collectives.

    Raises:
        RuntimeError: Not all came within that time.
        OSError: The port is taken.
    """
    own = listening_socket() if os.environ.get("RANK") == "0" else None
    if own is None:
        dist.init_process_group(backend, timeout=timeout)
        return
    address, port = own.getsockname()[:2]
    world = int(os.environ["WORLD_SIZE"])
    store = TCPStore(
        address, port, world, is_master=True, timeout=timeout, master_listen_fd=own.detach()
    )
    # The others leave it to torch, which writes with this prefix.
    named = PrefixStore("default_pg", store)
    dist.init_process_group(backend, store=named, rank=0, world_size=world, timeout=timeout)


def listening_socket() -> socket.socket | None:
    """What the store listens on; None where it is left to torch.

    That is where torchrun's own process keeps the store; where ``MASTER_ADDR`` is a name, which may
    mean loopback to the machine that has it, and does not to the others; and where it is an address
    that this machine does not have itself, as where another translates addresses for it.
    """
    if os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True":
        return None
    address = os.environ.get("MASTER_ADDR", "")
    try:
        version = 4 if address == "localhost" else ipaddress.ip_address(address).version
    except ValueError:
        return None
    family = socket.AF_INET if version == 4 else socket.AF_INET6
    try:
        return socket.create_server((address, int(os.environ["MASTER_PORT"])), family=family)
    except OSError as error:
        if error.errno == errno.EADDRNOTAVAIL:
            return None
        raise
