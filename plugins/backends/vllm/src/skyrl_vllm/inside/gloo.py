"""Weights in broadcasts of the trainer to all workers."""

from typing import Any

import torch
import xxhash

from skyrl_vllm.gloo import CHECKSUM_BYTES, Group, connect
from skyrl_vllm.layout import Checksum, Layout, Weights
from skyrl_vllm.network import own_address


def join(about: dict[str, Any], worker: int) -> Group:
    """Meet the trainer and the other workers.

    Args:
        about: What the trainer said: where, how many, and the rank of this server's first worker.
        worker: Number of this one in its server.

    Raises:
        RuntimeError: Not all came in time.
    """
    host, port, deadline_s = about["host"], int(about["port"]), float(about["deadline_s"])
    store = connect(host, port, deadline_s)
    return Group(
        store,
        int(about["first"]) + worker,
        int(about["size"]),
        host=own_address(host, port),
        deadline_s=deadline_s,
    )


def receive(group: Group, parcel: dict[str, Any]) -> Weights:
    """The tensors of one parcel, checked.

    Raises:
        ValueError: They are not what was announced.
        RuntimeError: The trainer is gone, or was too late.
    """
    layout = Layout.of_header(parcel["header"])
    data = torch.empty(layout.size, dtype=torch.uint8)
    checksum: Checksum = xxhash.xxh3_64()
    step = int(parcel["bucket"])
    for start in range(0, layout.size, step):
        part = data[start : start + step]
        group.broadcast(part)
        checksum.update(part.numpy())
    sent = torch.empty(CHECKSUM_BYTES, dtype=torch.uint8)
    group.broadcast(sent)
    if sent.numpy().tobytes() != checksum.digest():
        raise ValueError("other bytes came than were sent: their checksum differs")
    return layout.views(data)
