"""Weights as safetensors files in shared memory: for servers on the trainer's machine."""

import asyncio
import ipaddress
import os
import shutil
import tempfile
import zlib
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from skyrl_kernel.errors import CapabilityError
from skyrl_vllm.fleet import Fleet
from skyrl_vllm.transports.parcels import Parcels

if TYPE_CHECKING:
    import torch

SHARED_MEMORY = Path("/dev/shm")
_PREFIX = "skyrl-weights-"
"""Begins the names of folders; the process id of the run and a random part follow."""


class Files(Parcels):
    """Writes a file per `move`; `skyrl_vllm.inside.files` reads it.

    Args:
        root: Where a folder for the files is made; default: shared memory, or where
            temporary files go.
    """

    def __init__(self, root: Path | None = None) -> None:
        super().__init__()
        self._root = root or (
            SHARED_MEMORY if SHARED_MEMORY.is_dir() else Path(tempfile.gettempdir())
        )
        self._folder: Path | None = None
        self._moved = 0

    async def open(self, fleet: Fleet) -> None:
        """Find out whether the servers can read files of this machine.

        Raises:
            CapabilityError: One is on another.
        """
        for client in fleet.clients:
            _refuse_elsewhere(client.url)
        _remove_leftovers(self._root)
        await super().open(fleet)

    async def move(self, weights: "Iterable[tuple[str, torch.Tensor]]") -> None:
        """Write one file, and announce it."""
        parcel = await asyncio.to_thread(self._write, weights)
        if parcel is not None:
            await self.announce(parcel)

    def _write(self, weights: "Iterable[tuple[str, torch.Tensor]]") -> dict[str, Any] | None:
        from safetensors.torch import save_file

        tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in weights}
        if not tensors:
            return None
        if self._folder is None:
            prefix = f"{_PREFIX}{os.getpid()}-"
            self._folder = Path(tempfile.mkdtemp(prefix=prefix, dir=self._root))
        path = self._folder / f"{self._moved}.safetensors"
        self._moved += 1
        save_file(tensors, path)
        crc32, size = _crc32(path)
        return {
            "files": [{"path": str(path), "size": size, "crc32": crc32}],
            "count": len(tensors),
        }

    async def load(self, version: int) -> None:
        """Load, then delete the files."""
        await super().load(version)
        self._remove()

    async def forget(self) -> None:
        """Close an open update, and delete the files."""
        await super().forget()
        self._remove()

    def close(self) -> None:
        """Delete the files."""
        self._remove()

    def _remove(self) -> None:
        folder, self._folder, self._moved = self._folder, None, 0
        if folder is not None:
            shutil.rmtree(folder, ignore_errors=True)


def _refuse_elsewhere(url: str) -> None:
    host = urlsplit(url).hostname or ""
    try:
        is_here = ipaddress.ip_address(host).is_loopback
    except ValueError:
        is_here = host == "localhost"
    if not is_here:
        raise CapabilityError(
            f"the vLLM server at {url} is on another machine, and weights are passed on in files; use "
            "one on this machine"
        )


def _remove_leftovers(root: Path) -> None:
    """Delete what runs that were killed in the middle of an update have left: a model each."""
    for folder in root.glob(f"{_PREFIX}*-*"):
        number = folder.name.removeprefix(_PREFIX).partition("-")[0]
        if number.isdecimal() and not _is_alive(int(number)):
            shutil.rmtree(folder, ignore_errors=True)


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:  # it is somebody else's
        return True
    return True


def _crc32(path: Path) -> tuple[int, int]:
    """Checksum and size of a file."""
    crc32 = size = 0
    with path.open("rb") as file:
        while block := file.read(1 << 24):
            crc32, size = zlib.crc32(block, crc32), size + len(block)
    return crc32, size
