"""Weights in safetensors files that trainer and engine can both read."""

import zlib
from pathlib import Path
from typing import Any

from safetensors.torch import load_file

from skyrl_vllm.inside.receiver import Receiver, Weights


class FileReceiver(Receiver):
    """The other half of `skyrl_vllm.transports.files`."""

    def receive(self, parcel: dict[str, Any]) -> Weights:
        """Read and check all files.

        Raises:
            ValueError: A file is not what was announced.
        """
        received: Weights = []
        for file in parcel["files"]:
            received += read(Path(file["path"]), int(file["size"]), int(file["crc32"]))
        if len(received) != parcel["count"]:
            raise ValueError(f"{len(received)} tensors came, {parcel['count']} were announced")
        return received


def read(path: Path, size: int, crc32: int) -> Weights:
    """The tensors of one file.

    Raises:
        ValueError: Its length or its checksum is another one.
    """
    content = path.read_bytes()
    if len(content) != size:
        raise ValueError(f"{path.name} has {len(content)} bytes, {size} were announced")
    if zlib.crc32(content) != crc32:
        raise ValueError(f"{path.name} has other content than was announced: its checksum differs")
    return list(load_file(path).items())
