"""Weights in safetensors files that trainer and engine can both read."""

import json
import mmap
import os
from pathlib import Path
from typing import Any

import torch
import xxhash

from skyrl_vllm.layout import Layout, Weights


class FileReader:
    """The other half of `skyrl_vllm.transports.files`.

    Mappings are kept from update to update: to map a file again costs several times its
    checksum, and the trainer writes over the same ones.
    """

    def __init__(self) -> None:
        self._mapped: dict[tuple[int, ...], mmap.mmap] = {}
        self._used: set[tuple[int, ...]] = set()

    def read(self, parcel: dict[str, Any]) -> Weights:
        """The tensors of one file, checked: views of it, until they are loaded.

        Raises:
            ValueError: The file is not what was announced.
            OSError: It is not there.
        """
        path = Path(parcel["path"])
        content = self._map(path, int(parcel["size"]))
        if xxhash.xxh3_64_hexdigest(content) != parcel["xxh3"]:
            raise ValueError(
                f"{path.name} has other content than was announced: its checksum differs"
            )
        length = 8 + int.from_bytes(content[:8], "little")
        layout = Layout.of_header(json.loads(content[8:length]))
        if len(layout.places) != parcel["count"]:
            raise ValueError(f"{len(layout.places)} tensors came, {parcel['count']} were announced")
        return layout.views(torch.frombuffer(content, dtype=torch.uint8)[length:])

    def forget(self) -> None:
        """Keep the mappings of the last update only."""
        if self._used:
            self._mapped = {key: one for key, one in self._mapped.items() if key in self._used}
            self._used = set()

    def _map(self, path: Path, size: int) -> mmap.mmap:
        with path.open("rb") as file:
            found = os.fstat(file.fileno())
            if found.st_size != size:
                raise ValueError(f"{path.name} has {found.st_size} bytes, {size} were announced")
            key = (found.st_dev, found.st_ino, size)
            self._used.add(key)
            if key not in self._mapped:
                # A copy on write: torch wants what could be written to, and nothing writes.
                self._mapped[key] = mmap.mmap(file.fileno(), size, access=mmap.ACCESS_COPY)
            return self._mapped[key]
